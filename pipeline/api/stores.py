"""Read the features of a store by image id, as NumPy arrays or torch tensors."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch

from cache import Store, StoreLookupError
from manifests.errors import nearest
from manifests.identity import pair_key, stack_keys, text_key


class Features:
    """Features of one store. ``ids``: the image ids that have a row, in sorted order."""

    def __init__(self, store: Store):
        self.store = store
        self._bound = store.catalogue()
        self.ids = tuple(sorted(self._bound))

    @property
    def tables(self) -> dict[str, tuple[int, int]]:
        """Return table -> (rows, D)."""
        return {name: (info.rows, info.dim) for name, info in self.store.tables.items()}

    def images(self, ids: Iterable[str] | None = None) -> np.ndarray:
        """Return the rows of image ids, in that order (all of ``self.ids`` by default): [n, D], in the stored dtype.

        Raises StoreLookupError for an id without a row, with the nearest id.
        """
        table, chosen = "image" if "image" in self.store.tables else "target", list(self.ids if ids is None else ids)
        for name in chosen:
            if name not in self._bound:
                raise StoreLookupError(f"{self.store.path}: no row of image {name!r}: {nearest(name, self.ids[:2000])}")
        return self._gather(table, [self._bound[name] for name in chosen], chosen)

    def texts(self, texts: Iterable[str]) -> np.ndarray:
        """Return the text rows of feedback texts: [n, D]. Raises StoreLookupError for a text that is not cached."""
        chosen = [" ".join(text.split()) for text in texts]
        return self._gather("text", [text_key(text) for text in chosen], chosen)

    def queries(self, pairs: Iterable[tuple[str, str]]) -> np.ndarray:
        """Return f_qry of (reference image id, text) pairs: [n, D]. Raises StoreLookupError for an uncached pair."""
        chosen = [(image, " ".join(text.split())) for image, text in pairs]
        keys = [pair_key(self._bound.get(image, bytes(16)), text_key(text)) for image, text in chosen]
        return self._gather("query", keys, [f"{image}: {text}" for image, text in chosen])

    def torch(self, ids: Iterable[str] | None = None, device: torch.device | str = "cpu") -> torch.Tensor:
        """Return ``images`` as a float32 tensor [n, D]."""
        return torch.from_numpy(self.images(ids).astype(np.float32)).to(device)

    def _gather(self, table: str, keys: list[bytes], names: list[str]) -> np.ndarray:
        rows = self.store.find(table, stack_keys(keys))
        if (rows < 0).any():
            missing = [name for name, row in zip(names, rows, strict=True) if row < 0]
            raise StoreLookupError(
                f"{self.store.path}: table '{table}' has no row of {missing[0]!r} ({len(missing)} of {len(names)}): "
                "run `extract` on the spec that names it"
            )
        return self.store.gather(table, rows)


def open_store(path: str | Path) -> Features:
    """Open a store folder, ``<out>/stores/<dataset>/<name>-<fingerprint>``. Raises as ``cache.Store.open``."""
    return Features(Store.open(Path(path)))
