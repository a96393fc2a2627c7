"""Read a store without locks and, for contiguous shards, without HDF5; unchecked rows are never returned.

A ``Store`` is a snapshot: it sees the rows that its manifest lists. It keeps no open file and takes no lock, so it
works in threads, after fork and, pickled, in spawned workers. Two threads that first read the same shard both check
it, which is harmless.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
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
    """Committed rows of one (dataset, extractor) pair, read-only.

    Rows are content-addressed: ``find`` returns row numbers of keys, ``gather`` and ``load`` return features.
    """

    def __init__(
        self, path: Path, manifest: Manifest, verify: Check = "digest", binding: Mapping[str, bytes] | None = None
    ):
        self.path, self.manifest, self.verify, self.binding = path, manifest, verify, binding
        self._forget()

    @classmethod
    def open(cls, path: str | Path, verify: Check = "digest") -> Store:
        """Open a store; read manifest.json only.

        ``verify``: check of a shard at first use. "digest": SHA-256 of the file (about 0.1 s per 100 MB), once per
        file rather than per process (see ``cache.stat_cache``); "always": once per process; "header": size and header
        only. A shard that fails is never read.

        Raise StoreNotFoundError (a FileNotFoundError), StoreVersionError for a newer format, StoreCorruptError, and
        StoreMismatchError if dataset, extractor or fingerprint differ from the folder's name.
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
        """Semantic fields: everything that can change a feature's value, and nothing else."""
        return self.manifest.fields

    @property
    def execution(self) -> list[dict[str, Any]]:
        """Records of the writer sessions: settings, versions, host; recorded, never keyed."""
        return list(self.manifest.execution)

    @property
    def tables(self) -> dict[str, TableInfo]:
        return dict(self.manifest.tables)

    @property
    def nbytes(self) -> int:
        """Size of the store's files in bytes."""
        total = 0
        with naming(self.path, "list"), os.scandir(self.path) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):  # a temporary file of an active writer
                    total += entry.stat().st_size if entry.is_file() else 0
        return total

    def keys(self, table: str) -> np.ndarray:
        """Return the content keys in row order, uint8 [rows, 16], read-only; [0, 16] for a table without rows."""
        check_table(table)
        if table not in self._keys:
            keys = np.empty((0, KEY_BYTES), dtype=np.uint8)
            if (info := self.manifest.tables.get(table)) and info.shards:
                keys = np.concatenate([self._shards.read(s, info, partial(read_keys, info=s)) for s in info.shards])
                self._shards.remember()
            keys.flags.writeable = False
            self._keys[table] = keys
        return self._keys[table]

    def find(self, table: str, keys: np.ndarray) -> np.ndarray:
        """Return row numbers of keys uint8 [n, 16] -> int64 [n], -1 if absent (all, for a table without rows)."""
        try:
            keys = as_keys(keys)
        except ValueError as error:
            raise StoreError(f"{self.path.name}, table '{table}': {error}") from None
        if table not in self._indexes:
            self._indexes[table] = KeyIndex(self.keys(table))
        return self._indexes[table].find(keys)

    def load(self, table: str, out: np.ndarray | None = None) -> np.ndarray:
        """Load the whole table [rows, D] in its stored dtype, into ``out`` (e.g. a pinned tensor's array) if given."""
        info = self.table(table)
        for shard in info.shards:  # before memory is allocated for rows that may be missing
            self._shards.read(shard, info, lambda path: None)
        out = self._output(info, info.rows, out)
        self._shards.copy(table, out)
        self._shards.remember()
        return out

    def gather(self, table: str, rows: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """Gather the features of row numbers int [n] (any order, repeats allowed) -> [n, D], in that order.

        Raise StoreLookupError for a row outside the table, including -1, the result of ``find`` for an absent key.
        """
        info = self.table(table)
        rows = self._rows(table, info, rows)
        out = self._output(info, len(rows), out)
        if len(rows):
            self._shards.gather(table, rows, out)
            self._shards.remember()
        return out

    def bound_to(self, binding: Mapping[str, bytes]) -> Store:
        """Return the store with ``binding`` (image id -> key) of one dataset as its ``catalogue``.

        A store may contain rows of several datasets; its own catalog has the latest content of each id.
        """
        return Store(self.path, self.manifest, self.verify, binding)

    def catalogue(self) -> dict[str, bytes]:
        """Return image id -> 16-byte key of its row in ``image`` or ``target``; empty if nothing is bound."""
        if self.binding is not None:
            return dict(self.binding)
        if self._catalogue is None:
            found = read_catalogue(self.path, self.manifest.catalogue)
            if found is None:  # a writer may have replaced the binding since this snapshot
                found = read_catalogue(self.path, load_manifest(self.path).catalogue)
            if found is None:
                raise StoreCorruptError(
                    f"{self.path / CATALOGUE} is missing or is not the one the manifest names: run the extraction again"
                )
            self._catalogue = found
        return dict(self._catalogue)

    def failures(self) -> list[Failure]:
        """Return the items without a row, with the reason of their last failure.

        A failure is resolved once a row exists for its key, for the current key of its image id (``image`` and
        ``target``) or for its text (``text``), or if the writer withdrew it.
        """
        with naming(Ledger(self.path).path, "read"):
            return self.current(list(Ledger(self.path).failures().values()))

    def current(self, failures: list[Failure]) -> list[Failure]:
        """Return the ``failures`` whose items still have no row."""
        bound = self.catalogue() if any(f.table in ("image", "target") for f in failures) else {}
        return [f for f in failures if not self._has_row(f, bound)]

    def receipts(self) -> list[Receipt]:
        """Return the receipts of committed shards, in ledger order; shards without a receipt are skipped."""
        whole = {(s.file, s.sha256) for s in self.manifest.shards}
        with naming(Ledger(self.path).path, "read"):
            found = {r.shard: r for r in Ledger(self.path).receipts() if (r.shard, r.sha256) in whole}
        return list(found.values())

    def _has_row(self, failure: Failure, bound: dict[str, bytes]) -> bool:
        keys = [bytes.fromhex(failure.key)] if failure.key else []
        if failure.table in ("image", "target") and failure.item in bound:
            keys.append(bound[failure.item])
        if failure.table == "text" and not failure.key:
            with suppress(UnicodeEncodeError):  # invalid text, so no row can have its key
                keys.append(text_key(failure.item))
        return bool(keys) and bool((self.find(failure.table, stack_keys(keys)) >= 0).any())

    def table(self, table: str) -> TableInfo:
        """Return shape, dtype and shards of a table. Raise StoreLookupError if the store has no row of it."""
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
        unsigned = rows.view(np.uint64)  # negative rows become very large; argmax is 15x faster than max
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
