"""Features computed elsewhere: a folder of arrays with ids replaces the model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field

from manifests.schema import Dataset, Image
from pipeline.extraction.arrays import Lookup, open_arrays
from pipeline.extraction.extractors.base import Card, Extractor, ExtractorOptions


class ImportedOptions(ExtractorOptions):
    """``folder``: arrays and ids (see pipeline/extraction/arrays.py). ``concatenated``: they include queries
    with all captions as one text, which model ``cat`` needs. ``store_dtype``: null keeps the arrays' dtype. ``dtype``:
    not used, because nothing is computed.
    """

    folder: str = Field(min_length=1)
    dtype: Literal["float32"] = "float32"
    store_dtype: Literal["float16", "float32"] | None = None  # type: ignore[assignment]
    normalise: bool = False
    concatenated: bool = True


class ImportedExtractor(Extractor):
    """Extractor without a model: rows are looked up by image id, or by session and turn. The arrays are its weights.

    An image is identified by its id, not by its pixels or caption.
    """

    title: ClassVar[str] = "your own feature arrays with ids (npy or safetensors)"
    Options = ImportedOptions
    tables: ClassVar[tuple[str, ...]] = ("query", "target")
    reads: ClassVar[Literal["pixels", "caption"]] = "caption"
    stated: ClassVar[tuple[str, ...]] = ("folder", "concatenated")
    nonfinite: ClassVar[str] = "the imported arrays hold no row for it"
    options: ImportedOptions

    def __init__(self, options: ImportedOptions, device: torch.device):
        self.arrays = open_arrays(Path(options.folder).expanduser())
        widest = max((t.features.dtype for t in self.arrays.values()), key=lambda kind: kind.itemsize).name
        super().__init__(options.model_copy(update={"store_dtype": options.store_dtype or widest}), device)
        if "image" in self.arrays:
            self.tables = ("image", "text")  # type: ignore[misc]
        self.card = Card("yours", options.folder, options.contaminated_on)
        self._known: Any = None  # a Lookup: ``standin`` is called first, for every image

    def dim(self, table: str) -> int:
        return int(self.arrays[table].features.shape[1])

    def semantic(self) -> dict[str, Any]:
        arrays = {n: {"values": t.digest, "names": t.names} for n, t in self.arrays.items()}
        return super().semantic() | {"arrays": arrays, "concatenated": self.options.concatenated}

    def standin(self, image: Image, dataset: Dataset) -> str | None:
        """Return the id, quoted so that surrounding whitespace is not trimmed."""
        if self._known is None or self._known.dataset is not dataset:
            self._known = Lookup(self.arrays, dataset)
        return json.dumps(image.id)

    def _image_features(self, images: list[str]) -> torch.Tensor:
        table = self.tables[0] if self.tables[0] == "image" else "target"
        return self._rows(table, [self._known.image(table, json.loads(image)) for image in images])

    def _text_features(self, texts: list[str]) -> torch.Tensor:
        return self._rows("text", [self.arrays["text"].text_row(text) for text in texts])

    def _pair_features(self, images: list[str], texts: list[str]) -> torch.Tensor:
        pairs = zip(images, texts, strict=True)
        return self._rows("query", [self._known.pair(json.loads(image), text) for image, text in pairs])

    def _rows(self, table: str, rows: Sequence[int]) -> torch.Tensor:
        """Return rows float32 [n, D]; NaN, recorded as a failure, where the arrays have no row."""
        features = self.arrays[table].features
        found = np.full((len(rows), features.shape[1]), np.nan, dtype=np.float32)
        there = np.flatnonzero(np.asarray(rows) >= 0)
        found[there] = features[np.asarray(rows)[there]]
        return torch.from_numpy(found)
