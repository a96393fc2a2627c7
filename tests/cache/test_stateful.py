"""A store against a dict: any sequence of commits, refusals, bindings, failures, reopenings and crashes."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cache import TABLES, Store, StoreError, StoreWriter, verify, write_shard
from tests.cache.dying import die_at

KEYS = st.lists(st.integers(0, 60), min_size=1, max_size=12, unique=True)
SHAPES = {"image": (3, "float16"), "text": (2, "float32"), "query": (3, "float16"), "target": (1, "float32")}


def keys_of(numbers: list[int]) -> np.ndarray:
    return np.array([[n] * 15 + [0] for n in numbers], dtype=np.uint8)


class StoreMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.path = self.folder / "store"
        self.rows: dict[str, dict[int, np.ndarray]] = {table: {} for table in TABLES}
        self.catalogue: dict[str, bytes] = {}
        self.failed: dict[tuple[str, str], str] = {}
        self.stamp = self.kills = 0

    def open_writer(self) -> StoreWriter:
        return StoreWriter(self.path, dataset="demo", extractor="clip", fields={"a": 1}, execution={})

    @initialize()
    def create(self) -> None:
        self.writer = self.open_writer()
        self.reader = Store.open(self.path)

    @rule(table=st.sampled_from(TABLES), numbers=KEYS)
    def commit(self, table: str, numbers: list[int]) -> None:
        missing = self.writer.missing(table, keys_of(numbers))
        assert missing.tolist() == [n not in self.rows[table] for n in numbers]
        dim, dtype = SHAPES[table]
        self.stamp += 1
        features = np.array([[n + 0.5 * self.stamp] * dim for n in numbers], dtype=dtype)
        if not missing.all():
            with pytest.raises(StoreError, match="already has"):
                self.writer.commit(table, keys_of(numbers), features)
        if missing.any():
            self.writer.commit(table, keys_of(numbers)[missing], features[missing])
            self.rows[table].update({n: row for n, row, new in zip(numbers, features, missing, strict=True) if new})

    @rule(table=st.sampled_from(TABLES), numbers=KEYS)
    def commit_nan(self, table: str, numbers: list[int]) -> None:
        dim, dtype = SHAPES[table]
        with pytest.raises(StoreError, match=r"NaN or Inf|already has"):
            self.writer.commit(table, keys_of(numbers), np.full((len(numbers), dim), np.nan, dtype=dtype))

    @rule(catalogue=st.dictionaries(st.text(min_size=1, max_size=8), st.binary(min_size=16, max_size=16), max_size=4))
    def bind(self, catalogue: dict[str, bytes]) -> None:
        self.writer.bind(catalogue)
        self.catalogue = catalogue

    @rule(item=st.text(max_size=5), reason=st.text(max_size=5))
    def fail(self, item: str, reason: str) -> None:
        self.writer.fail("query", item, "encode", reason)
        self.failed["query", item] = reason

    @precondition(lambda self: self.failed)
    @rule(data=st.data())
    def clear(self, data: st.DataObject) -> None:
        table, item = data.draw(st.sampled_from(sorted(self.failed)))
        self.writer.clear(table, item)
        del self.failed[table, item]

    @rule()
    def reopen(self) -> None:
        self.writer.close()
        self.writer = self.open_writer()

    @rule(junk=st.binary(max_size=20))
    def crash(self, junk: bytes) -> None:
        """What a crash leaves behind: a torn ledger line and half-written files."""
        self.writer.close()
        with open(self.path / "ledger.jsonl", "ab") as handle:
            handle.write(b'{"kind"' + junk.replace(b"\n", b""))
        (self.path / ".image-00000.h5.1-0a.tmp").write_bytes(junk)
        self.writer = self.open_writer()

    @precondition(lambda self: any(self.rows.values()))
    @rule()
    def crash_before_the_manifest(self) -> None:
        """The manifest of one commit ago, with its shard in place: the shard is taken back."""
        table = next(t for t, rows in self.rows.items() if rows)
        number, (dim, dtype) = max(self.rows[table]) + 61, SHAPES[table]
        before = (self.path / "manifest.json").read_bytes()
        row = np.full((1, dim), 3, dtype=dtype)
        if number < 250:
            self.writer.commit(table, keys_of([number]), row)
            self.rows[table][number] = row[0]
            self.writer.close()
            (self.path / "manifest.json").write_bytes(before)
            self.writer = self.open_writer()

    @precondition(lambda self: hasattr(os, "fork") and self.kills < 2)  # a process each: seconds on a busy machine
    @rule(table=st.sampled_from(TABLES), numbers=KEYS, step=st.integers(1, 2300), adopt=st.booleans())
    def killed(self, table: str, numbers: list[int], step: int, adopt: bool) -> None:
        """A writer in another process dies by SIGKILL at any step of a commit: all of its rows are there, or none."""
        numbers = [n for n in numbers if n not in self.rows[table]]
        dim, dtype = SHAPES[table]
        self.stamp += 1
        features = np.array([[n + 0.5 * self.stamp] * dim for n in numbers], dtype=dtype)
        if not numbers:
            return
        self.kills += 1
        self.writer.close()
        pid = os.fork()
        if pid == 0:
            try:
                die_at(step)
                with self.open_writer() as writer:
                    if adopt:
                        writer.adopt(write_shard(self.path, table, keys_of(numbers), features))
                    else:
                        writer.commit(table, keys_of(numbers), features)
            finally:
                os._exit(0)
        os.waitpid(pid, 0)
        self.reader = Store.open(self.path)  # before anything is settled: old rows whole, new ones all or none
        seen = self.reader.find(table, keys_of(numbers)) >= 0
        assert seen.all() or not seen.any()
        self.writer = self.open_writer()
        missing = self.writer.missing(table, keys_of(numbers))
        assert not missing.any() or not (seen.any() or (~missing).any())
        if not missing.any():
            self.rows[table].update(zip(numbers, features, strict=True))

    @rule()
    def look(self) -> None:
        self.reader = Store.open(self.path)
        self.agrees(self.reader)
        assert {f.level for f in verify(self.path)} <= {"note", "warning"}

    @invariant()
    def the_snapshot_stays_readable(self) -> None:
        if hasattr(self, "reader"):
            for table, info in self.reader.tables.items():
                assert len(self.reader.load(table)) == info.rows

    def agrees(self, store: Store) -> None:
        assert set(store.tables) == {table for table, rows in self.rows.items() if rows}
        for table, rows in self.rows.items():
            numbers = list(rows)
            found = store.find(table, keys_of([*numbers, 255]))
            assert found[-1] == -1 and sorted(found[:-1]) == list(range(len(numbers)))
            if numbers:
                assert np.array_equal(store.gather(table, found[:-1]), np.stack(list(rows.values())))
                assert np.array_equal(store.keys(table)[found[:-1]], keys_of(numbers))
        assert store.catalogue() == self.catalogue
        assert {(f.table, f.item): f.reason for f in store.failures()} == self.failed

    def teardown(self) -> None:
        if hasattr(self, "writer"):
            self.writer.close()
            self.agrees(Store.open(self.path))
        shutil.rmtree(self.folder)


TestStore = StoreMachine.TestCase
TestStore.settings = settings(
    max_examples=8, stateful_step_count=15, deadline=None, suppress_health_check=list(HealthCheck)
)
