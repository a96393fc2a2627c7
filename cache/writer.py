"""Writing a store: one writer, immutable shards, and a manifest that names only what is whole and durable."""

from __future__ import annotations

import os
import secrets
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from cache.catalogue import read_catalogue, write_catalogue
from cache.errors import StoreError, StoreMismatchError, StoreNotFoundError, naming
from cache.files import WriterLock, now, sync_directory, sync_file
from cache.index import KeyIndex
from cache.layout import CATALOGUE, canonical, check_component, check_table, shard_name, temporary_for
from cache.ledger import Failure, Ledger, Receipt
from cache.manifest import Manifest, load_manifest, versions
from cache.reader import Store
from cache.recovery import remove_temporaries, settle_catalogue, take_back
from cache.shards import check_rows, write_shard
from manifests.identity import KEY_BYTES, changed_fields, digest


class StoreWriter:
    """Creates or resumes the store at ``path``; a context manager. Safe to call from several threads.

    Raises StoreMismatchError when the store there holds other fields, StoreBusyError while another writer has it,
    StoreError when the folder cannot be written. Opening a complete store changes nothing in it.

    After an error from ``commit`` (a full disk), ask ``missing`` again before committing the same rows.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        dataset: str,
        extractor: str,
        fields: Mapping[str, Any],
        execution: Mapping[str, Any] | None = None,
    ):
        check_component(dataset, "dataset")
        check_component(extractor, "extractor")
        fields = canonical(dict(fields))
        self.path, self._pid, self._mutex, self._closed = Path(path), os.getpid(), threading.RLock(), False
        self._session = {
            "session": secrets.token_hex(8),
            "started": now(),
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "versions": versions(),
            "settings": canonical(dict(execution or {}), "execution settings"),
            "rows": {},
        }
        self._asked = Manifest(dataset, extractor, digest(fields), fields, versions())
        with naming(self.path, "write"):
            new = not self.path.exists()
            self.path.mkdir(parents=True, exist_ok=True)
            if new:
                sync_directory(self.path.parent)
            self._lock = WriterLock(self.path)
        try:
            with naming(self.path, "write"):
                self._resume()
        except BaseException:
            self._lock.release()
            raise

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let the next writer in. Everything committed is already durable."""
        self._closed = True
        self._lock.release()

    def note(self, settings: Mapping[str, Any]) -> None:
        """Add to this session's execution settings; they are written with the next commit."""
        self._session["settings"] = {**self._session["settings"], **canonical(dict(settings), "execution settings")}

    def _resume(self) -> None:
        """Bring folder, manifest and memory into agreement."""
        self._unsure = True
        self._indexes: dict[str, KeyIndex] = {}
        self._ledger = Ledger(self.path)
        try:
            found = load_manifest(self.path)
        except StoreNotFoundError:
            found = None
        if found is not None:
            changed = self._changed(found)
            if changed:
                raise StoreMismatchError(self.path, changed)
        remove_temporaries(self.path)
        self._ledger.mend()
        self._failed = self._ledger.failures()
        manifest = found or self._asked
        self._before = tuple(r for r in manifest.execution if r.get("session") != self._session["session"])
        whole = settle_catalogue(self.path, take_back(self.path, manifest))
        self.manifest = manifest
        if found is None or whole != manifest:
            self._publish(whole)
        self._unsure = False

    def _changed(self, found: Manifest) -> list[str]:
        """One line for each part of the store's identity that is not the one asked for."""
        names = [{"dataset": m.dataset, "extractor": m.extractor} for m in (found, self._asked)]
        lines = changed_fields(*names) + changed_fields(found.fields, self._asked.fields)
        if not lines and found.fingerprint != self._asked.fingerprint:
            lines = ["fields: a value is of another kind (1 and true, or null and absent)"]
        return lines

    def _publish(self, manifest: Manifest, *also: Callable[[], Any]) -> None:
        """Make ``manifest`` the store's, with this session's record as its last, once what it names is durable."""
        manifest = replace(manifest, execution=(*self._before, self._session))
        manifest.save(self.path, after=(lambda: sync_directory(self.path), *also))
        self.manifest = manifest

    @contextmanager
    def _working(self) -> Iterator[None]:
        """One operation at a time; one that failed half-way is settled from disk before the next."""
        if self._closed or os.getpid() != self._pid:
            why = "was closed" if self._closed else "belongs to the process that opened it"
            raise StoreError(f"the writer of {self.path} {why}: open another one")
        with self._mutex:
            rows = ", ".join(f"{t.rows} rows of {name}" for name, t in self.manifest.tables.items()) or "no rows yet"
            kept = f"what was committed is whole ({rows}); make room or give access, and run the same command again"
            with naming(self.path, "write", kept):
                if self._unsure:
                    self._resume()
                yield

    @contextmanager
    def _changing(self, final: Path) -> Iterator[Path]:
        """A temporary file that becomes ``final``. If anything fails, memory is no longer trusted to match the disk."""
        self._unsure = True
        temporary = temporary_for(final)
        try:
            yield temporary
        finally:
            temporary.unlink(missing_ok=True)
        self._unsure = False

    def _index(self, table: str) -> KeyIndex:
        check_table(table)
        if table not in self._indexes:
            self._indexes[table] = KeyIndex(Store(self.path, self.manifest).keys(table))
        return self._indexes[table]

    def missing(self, table: str, keys: np.ndarray) -> np.ndarray:
        """Which keys uint8 [n, 16] have no row yet -> bool [n]."""
        with self._working():
            return self._index(table).find(keys) < 0

    def commit(self, table: str, keys: np.ndarray, features: np.ndarray, seconds: float = 0.0) -> Receipt:
        """Add rows as one immutable shard; durable when this returns.

        keys uint8 [n, 16], features float16 or float32 [n, D], ``seconds``: the model's time for them.
        Raises StoreError for rows that must not enter (NaN, other D or dtype, repeated keys) and for a full disk;
        then nothing was added.
        """
        check_table(table)
        with self._working():
            keys, features = check_rows(table, self.manifest.tables.get(table), keys, features)
            index = self._index(table)
            again = np.flatnonzero(index.find(keys) >= 0)
            if len(again):
                raise StoreError(
                    f"table '{table}' of {self.path} already has {len(again)} of these {len(keys)} rows, first key "
                    f"{keys[again[0]].tobytes().hex()}: commit only what missing() names"
                )
            number = self.manifest.next_number(table)
            final = self.path / shard_name(table, number)
            with self._changing(final) as temporary:
                shard = write_shard(temporary, self.manifest, table, number, keys, features)
                receipt = Receipt(table, shard.file, shard.rows, float(seconds), now(), shard.bytes, shard.sha256)
                self._ledger.add_receipt(receipt)
                os.replace(temporary, final)
                rows = self._session["rows"]
                self._session["rows"] = {**rows, table: rows.get(table, 0) + shard.rows}
                self._publish(
                    self.manifest.with_shard(table, features.shape[1], features.dtype.name, shard), self._ledger.sync
                )
                index.add(keys)
            return receipt

    def fail(self, table: str, item: str, stage: str, reason: str, key: bytes | None = None) -> None:
        """Record that ``item`` has no row. ``key``: its content key where known; a row with it ends the failure.

        The same failure as the last recorded one of the item is not written again.
        """
        check_table(table)
        if key is not None and len(key) != KEY_BYTES:
            raise StoreError(f"the key of failed item {item[:80]!r} must be {KEY_BYTES} bytes, not {len(key)}")
        failure = Failure(table, item, stage, reason, now(), key.hex() if key is not None else None)
        with self._working():
            last = self._failed.get((table, item))
            if last is None or replace(last, when=failure.when) != failure:
                self._ledger.add_failure(failure)
                self._failed[table, item] = failure

    def clear(self, table: str, item: str) -> None:
        """Withdraw the recorded failure of ``item``, if there is one."""
        with self._working():
            if (table, item) in self._failed:
                self._ledger.clear(table, item, now())
                del self._failed[table, item]

    def failures(self) -> list[Failure]:
        """Items that have no row now (see ``Store.failures``)."""
        with self._working():
            return Store(self.path, self.manifest).current(list(self._failed.values()))

    def bind(self, catalogue: Mapping[str, bytes]) -> None:
        """Replace the binding image id -> 16-byte key, atomically; nothing is written when it is equal."""
        with self._working():
            old = self.manifest.catalogue
            if old and read_catalogue(self.path, old) == dict(catalogue):
                return
            final = self.path / CATALOGUE
            with self._changing(final) as temporary:
                new = write_catalogue(temporary, self.manifest, catalogue)
                sync_file(temporary)
                if old:  # from here until the second publication, either file is the right one
                    self._publish(replace(self.manifest, catalogue=replace(new, replaces=old)))
                os.replace(temporary, final)
                self._publish(replace(self.manifest, catalogue=new))
