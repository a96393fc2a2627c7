"""List the stores below a folder."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from cache.errors import StoreError
from cache.layout import MANIFEST
from cache.reader import Store


@dataclass(frozen=True)
class StoreSummary:
    """Summary of a store. ``problem``: reason that it cannot be opened (the counts are empty then), or ""."""

    path: Path
    dataset: str
    extractor: str
    fingerprint: str
    rows: dict[str, int] = field(default_factory=dict)  # by table
    shards: int = 0
    images: int = 0  # ids bound in the catalog
    nbytes: int = 0
    problem: str = ""


def list_stores(root: str | Path) -> list[StoreSummary]:
    """Return all stores ``<root>/<dataset>/<extractor>-<fingerprint12>/``, by path; read manifests only."""
    return [_summary(path.parent) for path in sorted(Path(root).glob(f"*/*/{MANIFEST}"))]


def _summary(path: Path) -> StoreSummary:
    try:
        store = Store.open(path)
        return StoreSummary(
            path,
            store.dataset,
            store.extractor,
            store.fingerprint,
            {name: info.rows for name, info in store.tables.items()},
            sum(len(info.shards) for info in store.tables.values()),
            store.manifest.catalogue.ids if store.manifest.catalogue else 0,
            store.nbytes,
        )
    except StoreError as error:
        extractor, _, fingerprint = path.name.rpartition("-")
        return StoreSummary(path, path.parent.name, extractor, fingerprint, problem=str(error))
