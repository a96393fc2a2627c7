"""Shards of workers: written without a lease, adopted by the one writer."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cache import Store, StoreCorruptError, StoreError, StoreNotFoundError, verify, write_shard
from cache.layout import is_temporary


def test_adopted_shards_are_those_that_commit_makes(tmp_path: Path, path: Path, writer, rows, child) -> None:
    with writer(tmp_path / "committed") as w:
        for n in range(4):
            w.commit("image", *rows(n * 10, 10))
    with writer() as w:
        first = w.next_number("image")
        receipts = [write_shard(path, "image", *rows(n * 10, 10), number=first + n, seconds=n) for n in range(4)]
        assert Store.open(path).tables == {}  # not committed yet
        assert [w.adopt(r).shard for r in receipts[:1]] == ["image-00000.h5"]
        done = w.adopt_many(receipts[1:])
        assert [r.seconds for r in done] == [1, 2, 3] and [r.file for r in done] == [""] * 3
        assert not w.missing("image", rows(0, 40)[0]).any()
        w.commit("image", *rows(40, 10))
    for n in range(4):
        name = f"image-0000{n}.h5"
        assert (path / name).read_bytes() == (tmp_path / "committed" / name).read_bytes()
    store = Store.open(path)
    assert np.array_equal(store.load("image"), rows(0, 50)[1]) and verify(path) == []
    assert store.receipts()[1:4] == done and store.execution[0]["rows"] == {"image": 50}


def test_workers_in_other_processes(tmp_path: Path, path: Path, writer, rows) -> None:
    script = (
        "import sys, json; sys.path[:0] = sys.argv[1:3]; from dataclasses import asdict\n"
        "from conftest import content_rows; from cache import write_shard; n = int(sys.argv[4])\n"
        "r = write_shard(sys.argv[3], 'image', *content_rows(n * 50, 50), number=n)\n"
        "print(json.dumps(asdict(r)))"
    )
    places = [str(Path(__file__).parent), str(Path(__file__).parents[2]), str(path)]
    import json

    from cache import Receipt

    with writer() as w:
        workers = [
            subprocess.Popen([sys.executable, "-c", script, *places, str(n)], stdout=subprocess.PIPE) for n in range(3)
        ]
        receipts = [Receipt(**json.loads(p.communicate()[0])) for p in workers]
        w.adopt_many(receipts)
    assert np.array_equal(Store.open(path).load("image"), rows(0, 150)[1]) and verify(path) == []


def test_a_shard_adopted_out_of_turn_is_written_for_its_place(tmp_path: Path, path: Path, writer, rows) -> None:
    with writer(tmp_path / "committed") as w:
        w.commit("image", *rows(10, 10))
        w.commit("image", *rows(0, 10))
    with writer() as w:
        a, b = (write_shard(path, "image", *rows(n * 10, 10), number=n) for n in range(2))
        assert w.adopt(b).shard == "image-00000.h5"
        assert w.adopt(a).shard == "image-00001.h5"
    for n in range(2):
        name = f"image-0000{n}.h5"
        assert (path / name).read_bytes() == (tmp_path / "committed" / name).read_bytes()
    assert verify(path) == [] and not [f for f in os.listdir(path) if is_temporary(f)]


def test_what_a_dead_worker_leaves_is_swept_and_never_read(path: Path, writer, rows, child) -> None:
    writer().close()

    def die_half_way() -> None:
        import cache.shards

        cache.shards.sync_file = lambda file: os.kill(os.getpid(), 9)
        write_shard(path, "image", *rows(0, 10))

    assert child(die_half_way) == -9
    receipt = write_shard(path, "image", *rows(0, 10))  # whole, but its coordinator is gone
    assert sum(is_temporary(f) for f in os.listdir(path)) == 2
    assert Store.open(path).tables == {} and {f.code for f in verify(path)} == {"temporary"}
    with writer() as w:
        assert not any(is_temporary(f) for f in os.listdir(path))
        with pytest.raises(StoreCorruptError, match=r"tmp is missing: .* write the shard again"):
            w.adopt(receipt)
        w.adopt(write_shard(path, "image", *rows(0, 10)))
    assert verify(path) == []


def test_a_writer_that_settles_an_error_keeps_the_files_of_its_workers(path: Path, writer, rows, monkeypatch) -> None:
    import cache.writer

    with writer() as w:
        receipt = write_shard(path, "image", *rows(0, 10))

        def full(*arguments: object) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(cache.writer, "write_shard", full)
            with pytest.raises(StoreError, match="No space left"):
                w.commit("image", *rows(10, 5))
        w.adopt(receipt)
    assert Store.open(path).tables["image"].rows == 10 and verify(path) == []


def test_receipts_that_are_refused_add_nothing(tmp_path: Path, path: Path, writer, rows) -> None:
    with writer() as w:
        good = write_shard(path, "image", *rows(0, 10))
        same = write_shard(path, "image", *rows(5, 10), number=1)
        wide = write_shard(path, "image", *rows(50, 5, dim=9), number=1)
        with pytest.raises(StoreError, match="share rows"):
            w.adopt_many([good, same])
        assert Store.open(path).tables == {}
        w.adopt(good)
        for receipt, error in (
            (same, "already has 5 of these 10 rows"),
            (wide, "dim is 9, not 8"),
            (good, "is missing"),
            (replace(same, sha256="0" * 64), "other bytes"),
            (replace(same, file="../x"), "no worker's file"),
            (replace(same, file="image-00000.h5"), "no worker's file"),
            (replace(same, shard="image-00007.h5"), "no worker's file"),
            (replace(same, table="text"), "no worker's file"),
        ):
            with pytest.raises(StoreError, match=error):
                w.adopt(receipt)
        data = bytearray((path / same.file).read_bytes())
        data[-1] ^= 1
        (path / same.file).write_bytes(bytes(data))
        with pytest.raises(StoreCorruptError, match="other bytes"):
            w.adopt(same)
        w.discard(same)
        w.discard(same)
        w.discard(wide)
        w.discard(replace(good, file="../manifest.json"))
    assert np.array_equal(Store.open(path).load("image"), rows(0, 10)[1]) and verify(path) == []


def test_a_worker_without_a_store_or_with_unusable_rows_is_refused(path: Path, writer, rows) -> None:
    with pytest.raises(StoreNotFoundError):
        write_shard(path, "image", *rows(0, 10))
    writer().close()
    for number in (-1, 10**9, 1.5):
        with pytest.raises(StoreError, match="number must be"):
            write_shard(path, "image", *rows(0, 10), number=number)
    with pytest.raises(StoreError, match="NaN"):
        write_shard(path, "image", rows(0, 10)[0], np.full((10, 8), np.nan, np.float16))
    assert not any(is_temporary(f) for f in os.listdir(path))
