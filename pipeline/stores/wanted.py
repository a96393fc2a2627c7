"""What a spec asks for now: the fields, folder and rows of its stores, worked out without a forward pass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cache import Store, store_path
from cache.layout import canonical
from manifests.errors import FashionNTMError
from manifests.identity import digest, pair_key, stack_keys, text_key
from manifests.schema import Dataset, RunSpec
from pipeline.composition.checkpoint import SIDECAR, load_composer
from pipeline.composition.composers.base import Composer
from pipeline.composition.request import composer_request
from pipeline.stage1 import fitting_sessions
from pipeline.workspace import Workspace

if TYPE_CHECKING:
    from pipeline.extraction.extractors.base import Extractor
    from pipeline.extraction.work import Item

NOT_FITTED = "(not fitted yet)"


class OtherStoreError(FashionNTMError):
    """A spec was named for a store that is not one of its stores."""

    exit_code = 3


@dataclass(frozen=True)
class Wanted:
    """One store as a spec wants it now. ``tables``: table -> content key -> item; ``catalogue``: image id -> key.

    ``unreadable``: image ids whose content cannot be read now, and why.
    """

    path: Path
    extractor: str
    fields: dict[str, Any]
    tables: dict[str, dict[bytes, Item]]
    catalogue: dict[str, bytes]
    unreadable: dict[str, str]

    def keys(self, store: Store, dataset: Dataset) -> dict[str, np.ndarray]:
        """table -> uint8 [n, 16]: the rows that must stay in ``store``.

        An image that cannot be read now (a disk that is not mounted) keeps the rows that it has.
        """
        bound = {i: key for i, key in store.catalogue().items() if i in self.unreadable}
        found = {}
        for table, items in self.tables.items():
            keys = list(items)
            if table in ("image", "target"):
                keys += bound.values()
            elif table == "query":
                keys += [pair_key(bound[i], text_key(t)) for i, t in dataset.queries() if i in bound]
            found[table] = stack_keys(dict.fromkeys(keys))
        return found


@dataclass(frozen=True)
class Request:
    """A spec with its dataset and extractor. ``composed`` is None for a joint model; ``composer`` until it is fitted."""

    spec: RunSpec
    dataset: Dataset
    workspace: Workspace
    extractor: Extractor
    backbone: Wanted
    composed: Wanted | None
    composer: Composer | None

    @property
    def stores(self) -> list[Wanted]:
        return [w for w in (self.backbone, self.composed) if w is not None]

    def for_store(self, store: Store) -> Wanted:
        """The one of this spec's stores that ``store`` is or once was: composed features, or the extractor's own."""
        if "composer" in store.fields:
            if self.composed is None:
                raise OtherStoreError(
                    f"{store.path} holds composed features, and extractor '{self.spec.extractor.name}' of spec "
                    f"'{self.spec.name}' answers queries itself: it has no composed store"
                )
            return self.composed
        return self.backbone

    def own_store(self, store: Store) -> Wanted:
        """``for_store``, and its fields are those of ``store``. Raises OtherStoreError naming the command that tells why."""
        wanted = self.for_store(store)
        if digest(wanted.fields) != store.fingerprint or self.dataset.name != store.dataset:
            raise OtherStoreError(
                f"{store.path} is not a store of spec '{self.spec.name}' as it is now: "
                f"run `cache explain {store.path} {self.spec.asked}` to see what differs"
            )
        return wanted


def request_of(
    spec: RunSpec, dataset: Dataset, workspace: Workspace, device: str = "cpu", workers: int = 2
) -> Request:
    """Load the extractor (for its fingerprint; no item goes through it) and list what the spec wants.

    Raises what loading the model or reading the images folder raises.
    """
    from pipeline.extraction.digests import NAME as DIGESTS
    from pipeline.extraction.extractors import load_extractor
    from pipeline.extraction.work import catalogue_of, requests_of

    extractor = load_extractor(spec, device)
    fields = canonical(extractor.semantic())
    path = store_path(workspace.stores, dataset.name, extractor.name, fields)
    sources, unreadable = catalogue_of(dataset, extractor, path.parent / DIGESTS, workers, remember=False)
    catalogue = {image: item.key for image, item in sources.items()}

    def wanted(where: Path, name: str, about: dict[str, Any], tables: tuple[str, ...]) -> Wanted:
        rows = {table: requests_of(table, dataset, sources, unreadable)[1] for table in tables}
        return Wanted(where, name, about, rows, catalogue, unreadable)

    backbone = wanted(path, extractor.name, fields, extractor.tables)
    if "query" in extractor.tables:
        return Request(spec, dataset, workspace, extractor, backbone, None, None)
    composer, about = _composer(spec, dataset, extractor, path, fields)
    name = f"{extractor.name}+{about['name']}"
    composed_fields = canonical({"backbone": fields, "composer": about, "dtype": "float32"})
    where = store_path(workspace.stores, dataset.name, name, composed_fields)
    composed = wanted(where, name, composed_fields, ("target", "query"))
    return Request(spec, dataset, workspace, extractor, backbone, composed, composer)


def _composer(
    spec: RunSpec, dataset: Dataset, extractor: Extractor, backbone: Path, fields: Mapping[str, Any]
) -> tuple[Composer | None, dict[str, Any]]:
    """The spec's composer, None where it is still to be fitted, and its part of the composed store's fields."""
    request = composer_request(spec)
    assert request is not None
    about = {"name": request.name, "version": request.kind.version, "options": request.options.model_dump()}
    if not request.kind.trainable:
        composer = request.kind(request.options, extractor.dim("image"), extractor.dim("text")).eval()
        return composer, about | {"weights": None}
    fit, _ = fitting_sessions(spec, dataset)
    folder = request.weights or backbone / "composers" / request.key(digest(fields), fit)
    if request.weights is None and not (folder / SIDECAR).exists():
        return None, about | {"weights": NOT_FITTED}
    composer, sidecar = load_composer(folder)
    return composer, about | {"options": composer.options.model_dump(), "weights": sidecar["weights"]}
