"""Write a store: a single writer, immutable shards, and a manifest that lists only complete, durable files."""

from __future__ import annotations

import os
import secrets
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np

from cache.catalogue import read_catalogue, write_catalogue
from cache.errors import StoreError, StoreMismatchError, StoreNotFoundError, naming
from cache.files import now, sync_directory, sync_file
from cache.index import KeyIndex, duplicates
from cache.layout import CATALOGUE, canonical, check_component, check_table, is_temporary, shard_name, temporary_for
from cache.lease import Lease
from cache.ledger import Failure, Ledger, Receipt
from cache.manifest import Manifest, load_manifest, versions
from cache.reader import Store
from cache.recovery import adopt_unlisted, recover_catalogue, remove_temporaries
from cache.shards import FoundShard, check_rows, write_shard
from cache.workers import check_written
from manifests.identity import KEY_BYTES, changed_fields, digest


class StoreWriter:
    """Writer that creates or resumes the store at ``path``; a context manager, thread-safe.

    There is one writer at a time among all machines that share the folder (see ``cache.lease``). Worker processes
    write shards with ``cache.write_shard``, and the writer adopts them. Opening removes unadopted shards of earlier
    writers.

    Raises StoreMismatchError if the store has other fields, StoreBusyError while another writer has it (also from any
    method, if this writer's lease expired and was taken over), StoreError if the folder cannot be written.
    Opening a complete store does not change it.

    After an error from ``commit`` (a full disk), call ``missing`` again before committing the same rows.
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
        fields = dict(canonical(dict(fields)))
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
            self._lease = Lease(self.path)
        try:
            with naming(self.path, "write"):
                remove_temporaries(self.path)  # of dead writers and their workers; before any read (see Lease)
                self._resume()
        except BaseException:
            self._lease.release()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the lease. All commits are already durable."""
        self._closed = True
        self._lease.release()

    def note(self, settings: Mapping[str, Any]) -> None:
        """Add to this session's execution settings, which are written with the next commit."""
        self._session["settings"] = {**self._session["settings"], **canonical(dict(settings), "execution settings")}

    def _resume(self) -> None:
        """Make folder, manifest and memory consistent."""
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
        self._ledger.mend()
        self._failed = self._ledger.failures()
        manifest = found or self._asked
        self._before = tuple(r for r in manifest.execution if r.get("session") != self._session["session"])
        whole = recover_catalogue(self.path, adopt_unlisted(self.path, manifest, self._lease.check))
        self.manifest = manifest
        if found is None or whole != manifest:
            self._publish(whole)
        self._unsure = False

    def _changed(self, found: Manifest) -> list[str]:
        """Return one line per part of the store's identity that differs from the requested one."""
        names = [{"dataset": m.dataset, "extractor": m.extractor} for m in (found, self._asked)]
        return changed_fields(*names) + found.changes(self._asked.fields)

    def _publish(self, manifest: Manifest, *also: Callable[[], object]) -> None:
        """Publish ``manifest`` with this session's record appended, once all files it lists are durable."""
        manifest = replace(manifest, execution=(*self._before, self._session))
        manifest.save(self.path, after=(lambda: sync_directory(self.path), *also), last=self._lease.check)
        self.manifest = manifest

    @contextmanager
    def _working(self) -> Iterator[None]:
        """Run one operation at a time; after a failed one, resume from disk before the next."""
        if self._closed or os.getpid() != self._pid:
            why = "was closed" if self._closed else "belongs to the process that opened it"
            raise StoreError(f"the writer of {self.path} {why}: open another one")
        with self._mutex:
            rows = ", ".join(f"{t.rows} rows of {name}" for name, t in self.manifest.tables.items()) or "no rows yet"
            kept = f"what was committed is whole ({rows}); make room or give access, and run the same command again"
            with naming(self.path, "write", kept):
                self._lease.check()
                if self._unsure:
                    self._resume()
                yield

    @contextmanager
    def _changing(self) -> Iterator[Callable[[str], Path]]:
        """Provide temporary names and remove their files afterwards. After an error, discard the state in memory."""
        self._unsure = True
        names: list[Path] = []

        def temporary(final: str) -> Path:
            names.append(temporary_for(self.path / final))
            return names[-1]

        try:
            yield temporary
        finally:
            for name in names:
                with suppress(OSError):  # the first error counts
                    name.unlink(missing_ok=True)
        self._unsure = False

    def _index(self, table: str) -> KeyIndex:
        check_table(table)
        if table not in self._indexes:
            self._indexes[table] = KeyIndex(Store(self.path, self.manifest).keys(table))
        return self._indexes[table]

    def missing(self, table: str, keys: np.ndarray) -> np.ndarray:
        """Return which keys uint8 [n, 16] have no row yet -> bool [n]."""
        with self._working():
            return self._index(table).find(keys) < 0

    def commit(self, table: str, keys: np.ndarray, features: np.ndarray, seconds: float = 0.0) -> Receipt:
        """Add rows as one immutable shard; durable when this returns.

        keys uint8 [n, 16], features float16 or float32 [n, D], ``seconds``: the model's time for them.
        Raise StoreError for invalid rows (NaN, other D or dtype, repeated keys) and for a full disk; then no row is
        added.
        """
        check_table(table)
        with self._working():
            keys, features = check_rows(table, self.manifest.tables.get(table), keys, features)
            self._refuse_known(table, keys)
            number = self.manifest.next_number(table)
            with self._changing() as temporary:
                file = temporary(shard_name(table, number))
                shard = write_shard(file, self.manifest, table, number, keys, features)
                found = FoundShard(file, shard, keys, features.shape[1], features.dtype.name)
                return self._enter([(found, float(seconds))])[0]

    def adopt(self, receipt: Receipt) -> Receipt:
        """Commit the shard that a worker wrote with ``cache.write_shard``; its rows are appended to the table.

        Every byte of the file is checked against the receipt first. Return the receipt of the committed shard, which
        is durable then. Raise StoreCorruptError if the file is missing or differs, StoreError if the store already
        has some of the rows (``discard`` the receipt then). No row is added in either case.
        """
        return self.adopt_many([receipt])[0]

    def adopt_many(self, receipts: Sequence[Receipt]) -> list[Receipt]:
        """Adopt several shards in the given order with one publication: all of them or, if one is refused, none."""
        with self._working():
            found: list[Any] = []
            keys: dict[str, Any] = {}
            for receipt in receipts:
                one = check_written(self.path, self.manifest, receipt)
                self._refuse_known(receipt.table, one.keys)
                keys.setdefault(receipt.table, []).append(one.keys)
                found.append(one)
            if any(len(duplicates(np.concatenate(parts))) for parts in keys.values()):
                raise StoreError(f"the shards to adopt into {self.path} share rows: discard one of them")
            with self._changing() as temporary:
                entries, after = [], self.manifest
                for one, receipt in zip(found, receipts, strict=True):
                    number = after.next_number(receipt.table)
                    if one.shard.file != shard_name(receipt.table, number):
                        file = temporary(shard_name(receipt.table, number))
                        shard = write_shard(file, self.manifest, receipt.table, number, one.keys, one.features())
                        one = replace(one, file=file, shard=shard)
                    after = after.with_shard(receipt.table, one.dim, one.dtype, one.shard)
                    entries.append((one, receipt.seconds))
                done = self._enter(entries)
            for receipt in receipts:
                self.discard(receipt)  # the files of rewritten shards
            return done

    def discard(self, receipt: Receipt) -> None:
        """Delete the file of a worker's shard that will not be adopted. No error if it does not exist."""
        if is_temporary(receipt.file) and Path(receipt.file).name == receipt.file:
            (self.path / receipt.file).unlink(missing_ok=True)

    def next_number(self, table: str) -> int:
        """Return the number of the next shard of ``table``, for ``cache.write_shard``."""
        check_table(table)
        return self.manifest.next_number(table)

    def _refuse_known(self, table: str, keys: np.ndarray) -> None:
        again = np.flatnonzero(self._index(table).find(keys) >= 0)
        if len(again):
            raise StoreError(
                f"table '{table}' of {self.path} already has {len(again)} of these {len(keys)} rows, first key "
                f"{keys[again[0]].tobytes().hex()}: commit only what missing() names"
            )

    def _enter(self, entries: Sequence[tuple[FoundShard, float]]) -> list[Receipt]:
        """Write receipts to the ledger, rename the files, then replace the manifest; recovery relies on this order."""
        manifest, receipts = self.manifest, []
        for found, seconds in entries:
            table, shard = found.table, found.shard
            receipts.append(Receipt(table, shard.file, shard.rows, seconds, now(), shard.bytes, shard.sha256))
            self._ledger.add_receipt(receipts[-1])
            self._lease.check()
            os.replace(found.file, self.path / shard.file)
            rows = self._session["rows"]
            self._session["rows"] = {**rows, table: rows.get(table, 0) + shard.rows}
            manifest = manifest.with_shard(table, found.dim, found.dtype, shard)
        self._publish(manifest, self._ledger.sync)
        for found, _ in entries:
            self._index(found.table).add(found.keys)
        return receipts

    def fail(self, table: str, item: str, stage: str, reason: str, key: bytes | None = None) -> None:
        """Record that ``item`` has no row. ``key``: its content key if known; a row with this key resolves the failure.

        A failure equal to the last recorded one of the item is not written again.
        """
        self.fail_many(table, [(item, stage, reason, key)])

    def fail_many(self, table: str, failures: Iterable[tuple[str, str, str, bytes | None]]) -> None:
        """Record failures (item, stage, reason, key) as ``fail`` does, with one sync; after an error, maybe a part."""
        check_table(table)
        fresh = []
        for item, stage, reason, key in failures:
            if key is not None and len(key) != KEY_BYTES:
                raise StoreError(f"the key of failed item {item[:80]!r} must be {KEY_BYTES} bytes, not {len(key)}")
            fresh.append(Failure(table, item, stage, reason, now(), key.hex() if key is not None else None))
        with self._working():
            lasts = {(f.table, f.item): f for f in fresh}  # the last failure of an item overrides
            known = {place: self._failed.get(place) for place in lasts}
            new = [f for place, f in lasts.items() if (old := known[place]) is None or replace(old, when=f.when) != f]
            if new:
                self._ledger.add_failure(*new)
                self._failed.update({(f.table, f.item): f for f in new})

    def clear(self, table: str, item: str) -> None:
        """Withdraw the recorded failure of ``item``, if any."""
        with self._working():
            if (table, item) in self._failed:
                self._ledger.clear(table, item, now())
                del self._failed[table, item]

    def failures(self) -> list[Failure]:
        """Return the items without a row (see ``Store.failures``)."""
        with self._working():
            return Store(self.path, self.manifest).current(list(self._failed.values()))

    def bind(self, catalogue: Mapping[str, bytes]) -> None:
        """Replace the binding image id -> 16-byte key atomically; an equal binding is not written."""
        with self._working():
            old = self.manifest.catalogue
            if old and read_catalogue(self.path, old) == dict(catalogue):
                return
            with self._changing() as temporary:
                file = temporary(CATALOGUE)
                new = write_catalogue(file, self.manifest, catalogue)
                sync_file(file)
                if old:  # until the second publication, either file is valid
                    self._publish(replace(self.manifest, catalogue=replace(new, replaces=old)))
                self._lease.check()
                os.replace(file, self.path / CATALOGUE)
                self._publish(replace(self.manifest, catalogue=new))
