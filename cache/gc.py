"""Drop rows that no dataset references, and leftover files of interrupted writers."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cache.index import KeyIndex
from cache.layout import REJECTED, is_temporary
from cache.manifest import Manifest, load_manifest
from cache.reader import Store
from cache.recovery import unlisted_shards
from cache.rewrite import Rewriter, plan_table
from manifests.identity import KEY_BYTES


@dataclass(frozen=True)
class Collected:
    """Result of a collection, or with ``dry_run`` its plan. Rows by table; ``debris``: leftover file -> bytes."""

    path: Path
    dry_run: bool
    kept: dict[str, int] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)
    shards_removed: int = 0
    shards_written: int = 0
    ids_dropped: int = 0
    debris: dict[str, int] = field(default_factory=dict)
    bytes_freed: int = 0

    @property
    def rows_dropped(self) -> int:
        return sum(self.dropped.values())

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "path": str(self.path), "rows_dropped": self.rows_dropped}

    def text(self) -> str:
        would, about = ("would be ", "about ") if self.dry_run else ("", "")
        lines = [f"store  {self.path}"]
        for table in self.kept:
            lines.append(f"{table:6} {self.dropped.get(table, 0):,} rows {would}dropped, {self.kept[table]:,} kept")
        if self.ids_dropped:
            lines.append(f"ids    {self.ids_dropped:,} image ids of no dataset {would}dropped from the catalog")
        for name, size in self.debris.items():
            lines.append(f"debris {name} ({size:,} bytes) {would}removed")
        lines.append(f"freed  {about}{self.bytes_freed:,} bytes")
        return "\n".join([*lines, "nothing was written (dry run)"] if self.dry_run else lines)


def collect(
    path: str | Path,
    needed: Mapping[str, np.ndarray] | None = None,
    images: Collection[str] | None = None,
    *,
    dry_run: bool = False,
) -> Collected:
    """Keep the rows whose keys are in ``needed``: table -> uint8 [n, 16]; tables not in ``needed`` are kept whole.

    ``images``: ids kept in the catalog (None: all). Without ``needed``, only leftover files are removed: temporary
    files, rejected shards, and files not in the manifest. ``dry_run`` takes no lock, writes nothing, checks no digest.

    The same store and keys give the same shards, byte for byte. Raise StoreBusyError while a writer has the store,
    StoreCorruptError for a damaged shard (repair it first); nothing is dropped then.
    """
    path = Path(path)
    if dry_run:
        return _collect(Store(path, load_manifest(path), verify="header"), None, needed, images)
    before = _bytes(path)
    with Rewriter.of(path, "cache gc") as writer:
        done = _collect(Store(path, writer.manifest, verify="always"), writer, needed, images)
    opened = {n: size for n, size in sorted(before.items()) if is_temporary(n) and not (path / n).exists()}
    debris = {**opened, **done.debris}  # temporary files that opening the writer removed, and the others
    freed = sum(before.values()) - sum(_bytes(path).values())
    return Collected(**{**vars(done), "debris": debris, "bytes_freed": freed})


def _collect(
    store: Store, writer: Rewriter | None, needed: Mapping[str, np.ndarray] | None, images: Collection[str] | None
) -> Collected:
    keep = {}
    for table in store.tables:
        wanted = None if needed is None else needed.get(table)
        if wanted is not None:
            keep[table] = KeyIndex(wanted).find(store.keys(table)) >= 0
    plans = {table: plan_table(store.tables[table], mask) for table, mask in keep.items()}
    catalogue = store.catalogue()
    bound = catalogue if images is None else {i: key for i, key in catalogue.items() if i in images}
    rewritten = [s for plan in plans.values() for s in plan.info.shards if s.file in plan.gone]
    debris = _leftovers(store.path, store.manifest)
    if writer is not None:
        writer.keep(keep)
        if bound != catalogue:
            writer.bind(bound)
        for name in debris:
            (store.path / name).unlink(missing_ok=True)
    new = sum(
        len(plan.moved) * (np.dtype(plan.info.dtype).itemsize * plan.info.dim + KEY_BYTES) for plan in plans.values()
    )
    return Collected(
        store.path,
        writer is None,
        {t: int(keep[t].sum()) if t in keep else info.rows for t, info in store.tables.items()},
        {t: int((~mask).sum()) for t, mask in keep.items()},
        len(rewritten),
        sum(1 for plan in plans.values() for _ in plan.new_shards),
        len(catalogue) - len(bound),
        debris,
        max(0, sum(s.bytes for s in rewritten) - new) + sum(debris.values()),
    )


def _leftovers(path: Path, manifest: Manifest) -> dict[str, int]:
    names = {n for n in os.listdir(path) if is_temporary(n) or n.endswith(REJECTED)}
    return {n: (path / n).stat().st_size for n in sorted(names | set(unlisted_shards(path, manifest)))}


def _bytes(path: Path) -> dict[str, int]:
    with os.scandir(path) as entries:
        return {e.name: e.stat().st_size for e in entries if e.is_file()}
