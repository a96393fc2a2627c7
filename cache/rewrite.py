"""Remove rows from a store: write kept rows to a new immutable shard, replace the manifest, delete the old shard.

If the process is killed at any time, the store has either all old rows or all kept ones. Leftover files are never
adopted, because retired numbers are not reused; the next ``Rewriter`` sets them aside and ``cache.gc`` removes them.
Readers opened before keep the shards that they have mapped; for a removed shard they raise StoreCorruptError.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cache.errors import StoreError
from cache.files import now, replace_atomically, sync_directory
from cache.layout import LEDGER, shard_name, temporary_for
from cache.ledger import Receipt
from cache.manifest import TableInfo, load_manifest
from cache.reader import Store
from cache.recovery import set_aside
from cache.shards import write_shard
from cache.writer import StoreWriter


@dataclass(frozen=True)
class TablePlan:
    """Plan for a table of ``info`` when only some rows are kept: shards to drop, and rows to move, int64."""

    info: TableInfo
    gone: tuple[str, ...]
    moved: np.ndarray

    @property
    def new_shards(self) -> Iterator[np.ndarray]:
        """Row numbers of each new shard; none is larger than the table's largest shard, which bounds memory use."""
        size = max(shard.rows for shard in self.info.shards)
        return (self.moved[start : start + size] for start in range(0, len(self.moved), size))


def plan_table(info: TableInfo, keep: np.ndarray) -> TablePlan:
    """Plan which rows to keep, bool [rows]. A shard whose rows are all kept is unchanged."""
    if keep.dtype != bool or keep.shape != (info.rows,):
        raise StoreError(f"the rows to keep must be bool [{info.rows}], not {keep.dtype} {list(keep.shape)}")
    gone, moved, start = [], [], 0
    for shard in info.shards:
        mine = keep[start : start + shard.rows]
        if not mine.all():
            gone.append(shard.file)
            moved.append(start + np.flatnonzero(mine))
        start += shard.rows
    return TablePlan(info, tuple(gone), np.concatenate(moved) if moved else np.empty(0, dtype=np.int64))


class Rewriter(StoreWriter):
    """Writer of an existing store, regardless of its fields; the only class that drops rows."""

    @classmethod
    def of(cls, path: str | Path, command: str, **settings: Any) -> Rewriter:
        """Open the store at ``path`` for ``command`` (recorded). Raise the errors of ``StoreWriter``, and
        StoreNotFoundError or StoreCorruptError if there is no readable manifest."""
        found = load_manifest(Path(path))
        return cls(
            path,
            dataset=found.dataset,
            extractor=found.extractor,
            fields=found.fields,
            execution={"command": command, **settings},
        )

    def keep(self, rows: Mapping[str, np.ndarray]) -> list[str]:
        """Drop every row of these tables whose bool [rows] is false; return the removed files.

        Every shard is checked against its digest before it is read: a damaged one raises StoreCorruptError, and
        nothing is changed.
        """
        with self._working():
            plans = {table: plan_table(self.manifest.tables[table], keep) for table, keep in rows.items()}
            gone = [name for plan in plans.values() for name in plan.gone]
            if not gone:
                return []
            store = Store(self.path, self.manifest, verify="always")
            manifest = self.manifest.without(gone)
            self._unsure = True
            for table, plan in plans.items():
                for part in plan.new_shards:
                    keys, features = store.keys(table)[part], store.gather(table, part)
                    final = self.path / shard_name(table, manifest.next_number(table))
                    temporary = temporary_for(final)
                    try:
                        shard = write_shard(temporary, manifest, table, manifest.next_number(table), keys, features)
                        receipt = Receipt(table, shard.file, shard.rows, 0.0, now(), shard.bytes, shard.sha256)
                        self._ledger.add_receipt(receipt)
                        os.replace(temporary, final)
                    finally:
                        temporary.unlink(missing_ok=True)
                    manifest = manifest.with_shard(table, plan.info.dim, plan.info.dtype, shard)
            self._publish(manifest, self._ledger.sync)
            self._indexes.clear()
            for name in gone:
                (self.path / name).unlink(missing_ok=True)
            sync_directory(self.path)
            self._unsure = False
            return gone

    def set_aside(self, shards: Collection[str]) -> list[str]:
        """Remove damaged or missing shards from the manifest; return the new names of the existing files."""
        with self._working():
            if not shards:
                return []
            self._unsure = True
            self._publish(self.manifest.without(shards))
            self._indexes.clear()
            moved = []
            for name in shards:
                with suppress(FileNotFoundError):
                    moved.append(set_aside(self.path, name))
            sync_directory(self.path)
            self._unsure = False
            return moved

    def forget_catalogue(self) -> None:
        """Drop the binding of image ids; the next extraction writes a new one."""
        with self._working():
            self._publish(replace(self.manifest, catalogue=None))

    def repair_ledger(self) -> int:
        """Remove damaged lines from the ledger and restore missing receipts; return the number of removed lines."""
        with self._working():
            records = [(number, record) for number, record in self._ledger.lines()]
            bad = {number for number, record in records if record is None}
            if bad:
                lines = (self.path / LEDGER).read_bytes().split(b"\n")[:-1]
                kept = [line for number, line in enumerate(lines, start=1) if number not in bad]
                replace_atomically(self.path / LEDGER, b"".join(line + b"\n" for line in kept))
            have = {(r.shard, r.sha256) for r in self._ledger.receipts()}
            lost = [
                Receipt(table, s.file, s.rows, 0.0, now(), s.bytes, s.sha256)
                for table, info in self.manifest.tables.items()
                for s in info.shards
                if (s.file, s.sha256) not in have
            ]
            for receipt in lost:
                self._ledger.add_receipt(receipt)
            if lost:
                self._ledger.sync()
            return len(bad)
