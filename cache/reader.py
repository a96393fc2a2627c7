"""Reading a store: no lock, no HDF5 call where a shard lies in one piece, never a row that was not checked.

A ``Store`` is a snapshot: it sees the rows that its manifest names. It keeps no open file of its own and takes no
lock, so it works in threads, after fork and, pickled, in spawned workers; two threads that meet in the same first
touch do it twice, which is harmless.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, get_args

import numpy as np

from cache.catalogue import read_catalogue
from cache.checked import Check, CheckedShards
from cache.errors import StoreCorruptError, StoreError, StoreLookupError, StoreMismatchError, naming
from cache.index import KeyIndex, as_keys
from cache.layout import CATALOGUE, check_table, wrong_place
from cache.ledger import Failure, Ledger, Receipt
from cache.manifest import Manifest, TableInfo, load_manifest
from cache.rows import read_keys
from manifests.identity import KEY_BYTES, stack_keys, text_key


class Store:
    """The committed rows of one (dataset, extractor) pair, read-only.

    Rows are content-addressed: ``find`` gives row numbers of keys, ``gather`` and ``load`` give features.
    """

    def __init__(
        self, path: Path, manifest: Manifest, verify: Check = "digest", binding: Mapping[str, bytes] | None = None
    ):
        self.path, self.manifest, self.verify, self.binding = path, manifest, verify, binding
        self._forget()

    @classmethod
    def open(cls, path: str | Path, verify: Check = "digest") -> Store:
        """Open a store; reads manifest.json only.

        ``verify``: how a shard is checked when it is first touched. "digest": SHA-256 of the file (about 0.1 s per
        100 MB), once a file and not once a process (see ``cache.stat_cache``); "always": once a process; "header": size
        and header only. A shard that fails is never read.

        Raises StoreNotFoundError (a FileNotFoundError), StoreVersionError for a newer format, StoreCorruptError, and
        StoreMismatchError for the store of another dataset, extractor or fingerprint than its folder is named after.
        """
        if verify not in get_args(Check):
            raise StoreError(f"unknown verify {verify!r}: use one of {', '.join(get_args(Check))}")
        manifest = load_manifest(Path(path))
        misplaced = wrong_place(Path(path), manifest.dataset, manifest.extractor, manifest.fingerprint)
        if misplaced:
            raise StoreMismatchError(Path(path), [misplaced])
        return cls(Path(path), manifest, verify)

    def _forget(self) -> None:
        self._shards = CheckedShards(self.path, self.manifest, self.verify)
        self._keys: dict[str, np.ndarray] = {}
        self._indexes: dict[str, KeyIndex] = {}
        self._catalogue: dict[str, bytes] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "manifest": self.manifest, "verify": self.verify, "binding": self.binding}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    def __repr__(self) -> str:
        tables = ", ".join(f"{name} [{t.rows}, {t.dim}] {t.dtype}" for name, t in self.tables.items())
        return f"Store({str(self.path)!r}: {tables or 'empty'})"

    @property
    def dataset(self) -> str:
        return self.manifest.dataset

    @property
    def extractor(self) -> str:
        return self.manifest.extractor

    @property
    def fingerprint(self) -> str:
        """Digest of ``fields``, 64 hex digits."""
        return self.manifest.fingerprint

    @property
    def fields(self) -> dict[str, Any]:
        """Everything that can change a feature's value, and nothing else."""
        return self.manifest.fields

    @property
    def execution(self) -> list[dict[str, Any]]:
        """One record a writer session: settings, versions, host; recorded, never keyed."""
        return list(self.manifest.execution)

    @property
    def tables(self) -> dict[str, TableInfo]:
        return dict(self.manifest.tables)

    @property
    def nbytes(self) -> int:
        """Bytes on disk of the store's own files."""
        total = 0
        with naming(self.path, "list"), os.scandir(self.path) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):  # a temporary file of a writer at work
                    total += entry.stat().st_size if entry.is_file() else 0
        return total

    def keys(self, table: str) -> np.ndarray:
        """Content keys in order of the rows, uint8 [rows, 16], read-only; [0, 16] for a table without rows."""
        check_table(table)
        if table not in self._keys:
            info = self.manifest.tables.get(table)
            shards = info.shards if info else ()
            parts = [
                self._shards.read(shard, info, lambda path, shard, info: read_keys(path, shard)) for shard in shards
            ]
            self._shards.remember()
            keys = np.concatenate(parts) if parts else np.empty((0, KEY_BYTES), dtype=np.uint8)
            keys.flags.writeable = False
            self._keys[table] = keys
        return self._keys[table]

    def find(self, table: str, keys: np.ndarray) -> np.ndarray:
        """Row numbers of keys uint8 [n, 16] -> int64 [n], -1 where absent (everywhere, for a table without rows)."""
        try:
            keys = as_keys(keys)
        except ValueError as error:
            raise StoreError(f"{self.path.name}, table '{table}': {error}") from None
        if table not in self._indexes:
            self._indexes[table] = KeyIndex(self.keys(table))
        return self._indexes[table].find(keys)

    def load(self, table: str, out: np.ndarray | None = None) -> np.ndarray:
        """The whole table [rows, D] in its stored dtype; into ``out`` (such as a pinned tensor's array) if given."""
        info = self.table(table)
        for shard in info.shards:  # before room is made for rows that may not be there
            self._shards.read(shard, info, lambda path, shard, info: None)
        out = self._output(info, info.rows, out)
        self._shards.copy(table, 0, out)
        self._shards.remember()
        return out

    def read(self, table: str, start: int, out: np.ndarray) -> np.ndarray:
        """Rows ``start`` to ``start + n`` of a table into ``out`` [n, D], by plain reads; gives ``out``."""
        info = self.table(table)
        out = self._output(info, len(out), out)
        if type(start) is not int or not 0 <= start <= info.rows - len(out):
            raise StoreLookupError(
                f"{self.path}: table '{table}' has rows 0 to {info.rows - 1}, asked for {len(out)} from row {start!r}"
            )
        self._shards.copy(table, start, out)
        return out

    def stream(
        self, table: str, block: int = 8192, rows: np.ndarray | None = None, out: np.ndarray | None = None
    ) -> Iterator[np.ndarray]:
        """A table, or its ``rows`` int [n], in order, as arrays of up to ``block`` rows [m, D]: for more than fits in memory.

        Holds one block. ``out`` [block, D] (a pinned tensor's array, say) is filled again and again, and its beginning
        given: copy what should outlive the step. Errors as ``load`` and ``gather``; each shard is checked as its turn
        comes, so rows of the shards before a damaged one are given.
        """
        info = self.table(table)
        if type(block) is not int or block < 1:
            raise StoreError(f"block must be a number of rows, at least 1, not {block!r}")
        if rows is not None:
            rows = self._rows(table, info, rows)
        if out is not None:
            out = self._output(info, block, out)
        for start in range(0, info.rows if rows is None else len(rows), block):
            count = min(block, (info.rows if rows is None else len(rows)) - start)
            part = np.empty((count, info.dim), dtype=info.dtype) if out is None else out[:count]
            if rows is None:
                self._shards.copy(table, start, part)
            else:
                self._shards.gather(table, rows[start : start + count], part)
            yield part
        self._shards.remember()

    def gather(self, table: str, rows: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """Features of row numbers int [n] (any order, repeats allowed) -> [n, D], in that order.

        Raises StoreLookupError for a row outside the table: -1, which ``find`` gives for an absent key, included.
        """
        info = self.table(table)
        rows = self._rows(table, info, rows)
        out = self._output(info, len(rows), out)
        if len(rows):
            self._shards.gather(table, rows, out)
            self._shards.remember()
        return out

    def bound_to(self, binding: Mapping[str, bytes]) -> Store:
        """The same rows, under the image ids of one dataset: ``catalogue`` gives ``binding`` (image id -> key) from now on.

        A store may hold rows of several datasets; its own catalogue has the latest content of each id.
        """
        return Store(self.path, self.manifest, self.verify, binding)

    def catalogue(self) -> dict[str, bytes]:
        """Image id -> 16-byte key of its row in ``image`` or ``target``; empty when nothing was bound."""
        if self.binding is not None:
            return dict(self.binding)
        if self._catalogue is None:
            found = read_catalogue(self.path, self.manifest.catalogue)
            if found is None:  # a writer may have bound another one since this snapshot was taken
                found = read_catalogue(self.path, load_manifest(self.path).catalogue)
            if found is None:
                raise StoreCorruptError(
                    f"{self.path / CATALOGUE} is missing or is not the one the manifest names: run the extraction again"
                )
            self._catalogue = found
        return dict(self._catalogue)

    def failures(self) -> list[Failure]:
        """Items that have no row now, with the reason of their last failure.

        A failure is over once a row exists for its key; for the key that its image id has now (``image`` and
        ``target``); for its text (``text``); or when the writer withdrew it.
        """
        with naming(Ledger(self.path).path, "read"):
            return self.current(list(Ledger(self.path).failures().values()))

    def current(self, failures: list[Failure]) -> list[Failure]:
        """Those of ``failures`` whose items still have no row."""
        bound = self.catalogue() if any(f.table in ("image", "target") for f in failures) else {}
        return [f for f in failures if not self._has_row(f, bound)]

    def receipts(self) -> list[Receipt]:
        """The receipt of each committed shard that has one, in order of the ledger."""
        whole = {(s.file, s.sha256) for info in self.manifest.tables.values() for s in info.shards}
        with naming(Ledger(self.path).path, "read"):
            found = {r.shard: r for r in Ledger(self.path).receipts() if (r.shard, r.sha256) in whole}
        return list(found.values())

    def _has_row(self, failure: Failure, bound: dict[str, bytes]) -> bool:
        keys = [bytes.fromhex(failure.key)] if failure.key else []
        if failure.table in ("image", "target") and failure.item in bound:
            keys.append(bound[failure.item])
        if failure.table == "text" and not failure.key:
            with suppress(UnicodeEncodeError):  # no valid text, so no row can have its key
                keys.append(text_key(failure.item))
        return bool(keys) and bool((self.find(failure.table, stack_keys(keys)) >= 0).any())

    def table(self, table: str) -> TableInfo:
        """Shape, dtype and shards of a table. Raises StoreLookupError when the store has no row of it."""
        check_table(table)
        if table not in self.manifest.tables:
            held = ", ".join(self.manifest.tables) or "none"
            raise StoreLookupError(f"{self.path} holds no rows of table '{table}'; tables: {held}")
        return self.manifest.tables[table]

    def _rows(self, table: str, info: TableInfo, rows: np.ndarray) -> np.ndarray:
        rows = np.asarray(rows)
        if rows.ndim != 1 or (rows.dtype.kind not in "iu" and rows.size):
            raise StoreError(f"rows of table '{table}' must be integers [n], not {rows.dtype} {list(rows.shape)}")
        if rows.dtype != np.int64 or not rows.flags.c_contiguous:
            rows = np.ascontiguousarray(rows, dtype=np.int64)
        unsigned = rows.view(np.uint64)  # a negative one is a very large one; argmax is 15x as fast as max
        if rows.size and unsigned[unsigned.argmax()] >= info.rows:
            wrong = rows[(rows < 0) | (rows >= info.rows)]
            raise StoreLookupError(
                f"{self.path}: table '{table}' has rows 0 to {info.rows - 1}, asked for {wrong[:5].tolist()} "
                f"({len(wrong)} of {rows.size} outside): keys that find() gives -1 for are not extracted"
            )
        return rows

    def _output(self, info: TableInfo, rows: int, out: np.ndarray | None) -> np.ndarray:
        if out is None:
            return np.empty((rows, info.dim), dtype=info.dtype)
        if out.shape != (rows, info.dim) or out.dtype.name != info.dtype or not out.flags.c_contiguous:
            raise StoreError(
                f"out must be a contiguous {info.dtype} {[rows, info.dim]}, not {out.dtype} {list(out.shape)}"
            )
        return out
