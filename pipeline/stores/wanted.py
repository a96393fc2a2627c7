"""Stores expected by a spec on its present data: fields, folders and rows, determined without a forward pass."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cache import Store, StoreError, store_path
from cache.layout import canonical
from manifests.errors import FashionNTMError
from manifests.identity import digest, pair_key, stack_keys, text_key
from manifests.schema import Dataset, RunSpec
from pipeline.composition.checkpoint import load_composer
from pipeline.composition.compose import composed_fields
from pipeline.composition.composers.base import Composer
from pipeline.composition.crossfit import CrossFitted
from pipeline.composition.ready import ready_composer
from pipeline.composition.request import composer_request
from pipeline.core.image_files import DIGESTS
from pipeline.core.workspace import Workspace
from pipeline.extraction.extractors import load_extractor
from pipeline.extraction.fitting.job import fitted_spec
from pipeline.extraction.work import bound_keys, catalogue_of, requests_of

if TYPE_CHECKING:
    from pipeline.extraction.extractors.base import Extractor
    from pipeline.extraction.work import Item

NOT_FITTED = "(not fitted yet)"


class OtherStoreError(FashionNTMError):
    """The named store does not belong to the named spec."""

    exit_code = 3


@dataclass(frozen=True)
class ExpectedStore:
    """One store as the spec expects it. ``tables``: table -> content key -> item; ``catalogue``: image id -> key.

    ``unreadable``: ids of images that are unreadable now, with reasons.
    """

    path: Path
    extractor: str
    fields: dict[str, Any]
    tables: dict[str, dict[bytes, Item]]
    catalogue: dict[str, bytes]
    unreadable: dict[str, str]

    def keys(self, store: Store, dataset: Dataset) -> dict[str, np.ndarray]:
        """Return table -> uint8 [n, 16]: keys of the rows to keep in ``store``.

        An image that is unreadable now (e.g. on an unmounted disk) keeps its rows.
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
class StoreRequest:
    """A spec with dataset and extractor. ``composed`` is None for a joint model, ``composer`` until it is fitted."""

    spec: RunSpec
    dataset: Dataset
    workspace: Workspace
    extractor: Extractor
    backbone: ExpectedStore
    composed: ExpectedStore | None
    composer: Composer | None
    crossed: CrossFitted | None = None  # heads by fold

    def head_for(self, key: bytes) -> Composer | None:
        """Return the composer of the query row ``key``; with folds, the one of its fold."""
        fold = self.crossed.head_of(key) if self.crossed else -1
        return self.composer if self.crossed is None or fold < 0 else self.crossed.heads[fold]

    @property
    def stores(self) -> list[ExpectedStore]:
        return [w for w in (self.backbone, self.composed) if w is not None]

    def for_store(self, store: Store) -> ExpectedStore:
        """Return this spec's expected store of the kind of ``store``: composed features or the extractor's own."""
        if "composer" in store.fields:
            if self.composed is None:
                joint = f"extractor '{self.spec.extractor.name}' of spec '{self.spec.name}' answers queries itself"
                raise OtherStoreError(f"{store.path} holds composed features, and {joint}: it has no composed store")
            return self.composed
        return self.backbone

    def own_store(self, store: Store) -> ExpectedStore:
        """Return ``for_store`` if the fields match. Raises OtherStoreError naming a command to explain the mismatch."""
        wanted = self.for_store(store)
        if digest(wanted.fields) != store.fingerprint or self.dataset.name != store.dataset:
            fix = f"run `{self.spec.command(f'cache explain {store.path}')}` to see what differs"
            raise OtherStoreError(f"{store.path} is not a store of spec '{self.spec.name}' as it is now: {fix}")
        return wanted


def request_of(spec: RunSpec, dataset: Dataset, workspace: Workspace, device: str = "cpu") -> StoreRequest:
    """Load the extractor (only for its fingerprint) and list the stores that the spec expects.

    Propagates errors from loading the model and reading the images folder.
    """
    extractor = load_extractor(fitted_spec(spec, dataset, workspace), device)
    fields = canonical(extractor.semantic())
    path = store_path(workspace.stores, dataset.name, extractor.name, fields)
    sources, unreadable = catalogue_of(dataset, extractor, path.parent / DIGESTS, workers=2, remember=False)
    catalogue = bound_keys(dataset, sources)

    def wanted(where: Path, name: str, about: dict[str, Any], tables: tuple[str, ...]) -> ExpectedStore:
        rows = {table: requests_of(table, dataset, sources, unreadable)[1] for table in tables}
        return ExpectedStore(where, name, about, rows, catalogue, unreadable)

    backbone = wanted(path, extractor.name, fields, extractor.tables)
    if "query" in extractor.tables:
        return StoreRequest(spec, dataset, workspace, extractor, backbone, None, None)
    fields, composer, crossed = _composer(spec, dataset, extractor, backbone)
    composed = canonical(fields)
    name = f"{extractor.name}+{composed['composer']['name']}"
    where = store_path(workspace.stores, dataset.name, name, composed)
    rows = wanted(where, name, composed, ("target", "query"))
    return StoreRequest(spec, dataset, workspace, extractor, backbone, rows, composer, crossed)


def _composer(
    spec: RunSpec, dataset: Dataset, extractor: Extractor, backbone: ExpectedStore
) -> tuple[dict[str, Any], Composer | None, CrossFitted | None]:
    """Return (fields of the composed store, composer, heads by fold), None for those that are not fitted.

    The composer is loaded with the functions used for composing, if there is a backbone store.
    """
    request = composer_request(spec)
    with suppress(StoreError):  # no backbone yet, or a damaged one: there is nothing to compose from
        store = Store.open(backbone.path).bound_to(backbone.catalogue)
        ready = ready_composer(request, spec, dataset, store) if "image" in store.tables else None
        if ready is not None:
            composed = composed_fields(store, ready.composer, ready.weights, ready.crossed)
            return composed, ready.composer, ready.crossed
    about = {"name": request.name, "version": request.kind.version, "options": request.options.model_dump()}
    composer: Composer | None = None
    weights: str | None = NOT_FITTED
    if not request.kind.trainable:
        composer, weights = request.kind(request.options, extractor.dim("image"), extractor.dim("text")).eval(), None
    elif request.weights is not None:
        composer, sidecar = load_composer(request.weights)
        about["options"], weights = composer.options.model_dump(), sidecar["weights"]
    return {"backbone": backbone.fields, "composer": about | {"weights": weights}, "dtype": "float32"}, composer, None
