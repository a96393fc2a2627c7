"""Garbage collection: exactly the rows that nothing needs go, whatever happens in between."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import numpy as np
import pytest

from cache import Store, StoreBusyError, StoreCorruptError, verify
from cache.gc import collect
from cache.manifest import load_manifest
from cache.rewrite import Rewriter

from .test_verify import flip

Rows = Callable[..., tuple[np.ndarray, np.ndarray]]
WATCHED = ("replace", "unlink", "fsync", "write", "truncate", "ftruncate")


def needed(rows: Rows, *ranges: tuple[int, int]) -> np.ndarray:
    return np.concatenate([rows(start, count)[0] for start, count in ranges])


def check(path: Path, table: str, rows: Rows, *ranges: tuple[int, int], dim: int = 8, dtype: str = "float16") -> None:
    """The table holds exactly these rows, each with its own features."""
    store = Store.open(path, verify="always")
    expected = {k.tobytes(): f for s, n in ranges for k, f in zip(*rows(s, n, dim, dtype), strict=True)}
    found = dict(zip(map(bytes, store.keys(table)), store.load(table), strict=True))
    assert found.keys() == expected.keys() and all(np.array_equal(found[k], expected[k]) for k in found)


def files(path: Path) -> dict[str, bytes]:
    return {f.name: f.read_bytes() for f in path.glob("*.h5")}


def test_a_dry_run_counts_and_writes_nothing(three_shards: Path, rows: Rows) -> None:
    before = {f.name: (f.stat().st_mtime_ns, f.read_bytes()) for f in three_shards.iterdir()}
    found = collect(three_shards, {"image": needed(rows, (0, 300), (310, 10))}, dry_run=True)
    assert found.kept == {"image": 310, "text": 40} and found.dropped == {"image": 290}
    assert (found.shards_removed, found.shards_written) == (2, 1) and found.bytes_freed > 285 * 32
    assert "290 rows would be dropped" in found.text() and "nothing was written" in found.text()
    assert {f.name: (f.stat().st_mtime_ns, f.read_bytes()) for f in three_shards.iterdir()} == before


def test_only_rows_that_nothing_needs_go(three_shards: Path, rows: Rows) -> None:
    size = sum(f.stat().st_size for f in three_shards.iterdir())
    done = collect(three_shards, {"image": needed(rows, (0, 300), (310, 10))}, images={"image 3", "image 19"})
    check(three_shards, "image", rows, (0, 300), (310, 10))
    check(three_shards, "text", rows, (1000, 40), dim=6, dtype="float32")  # a table that was not named stays whole
    assert sorted(files(three_shards)) == ["catalogue.h5", "image-00000.h5", "image-00003.h5", "text-00000.h5"]
    assert set(Store.open(three_shards).catalogue()) == {"image 3", "image 19"} and done.ids_dropped == 18
    assert done.bytes_freed == size - sum(f.stat().st_size for f in three_shards.iterdir())
    assert [f for f in verify(three_shards) if f.level != "note"] == []
    again = collect(three_shards, {"image": needed(rows, (0, 300), (310, 10))}, images={"image 3", "image 19"})
    assert again.rows_dropped == again.bytes_freed == 0 or again.bytes_freed < 300  # a session's record at most


def test_the_same_collection_gives_the_same_bytes(three_shards: Path, rows: Rows, tmp_path: Path) -> None:
    copy = shutil.copytree(three_shards, tmp_path / "copy")
    for path in (three_shards, copy):
        collect(path, {"image": needed(rows, (100, 50), (302, 100))[::-1], "text": needed(rows, (1000, 3))})
    assert files(three_shards) == files(copy)


def test_a_dropped_number_never_comes_back(three_shards: Path, rows: Rows, writer: Callable) -> None:
    """Not even of a table that lost every row: a reader may still hold the old file under that name."""
    collect(three_shards, {"image": np.empty((0, 16), np.uint8), "text": needed(rows, (1000, 40))})
    assert list(Store.open(three_shards).tables) == ["text"]
    with writer() as w:
        w.commit("image", *rows(0, 4))
    assert Store.open(three_shards).tables["image"].shards[0].file == "image-00003.h5"
    check(three_shards, "image", rows, (0, 4))


def test_an_old_reader_gets_its_rows_or_an_error(three_shards: Path, rows: Rows) -> None:
    reader = Store.open(three_shards)
    reader.gather("image", np.array([0]))
    collect(three_shards, {"image": needed(rows, (1, 3))})
    with pytest.raises(StoreCorruptError, match=r"image-00001\.h5"):
        reader.gather("image", np.array([302]))


def test_debris_goes_and_good_files_stay(three_shards: Path) -> None:
    (three_shards / "image-00007.h5.0123abcd.rejected").write_bytes(b"x" * 10)
    (three_shards / ".image-00003.h5.7-0a0b.tmp").write_bytes(b"y" * 20)
    shutil.copy(three_shards / "text-00000.h5", three_shards / "text-00009.h5")
    (three_shards / "composers").mkdir()
    keep = files(three_shards)
    del keep["text-00009.h5"]
    assert {n for n in collect(three_shards, dry_run=True).debris} == {
        ".image-00003.h5.7-0a0b.tmp",
        "image-00007.h5.0123abcd.rejected",
        "text-00009.h5",
    }
    collect(three_shards)
    assert files(three_shards) == keep and (three_shards / "composers").is_dir()
    assert [f for f in verify(three_shards) if f.level != "note"] == []


def test_a_damaged_shard_stops_it_before_anything_is_dropped(three_shards: Path, rows: Rows) -> None:
    flip(three_shards / "image-00001.h5", -20)
    before = files(three_shards)
    with pytest.raises(StoreCorruptError, match=r"image-00001\.h5"):
        collect(three_shards, {"image": needed(rows, (0, 3))})
    assert files(three_shards) == before


def test_a_writer_at_work_is_left_alone(three_shards: Path, writer: Callable) -> None:
    with writer(), pytest.raises(StoreBusyError):
        collect(three_shards)
    collect(three_shards, dry_run=True)


@pytest.mark.parametrize("step", [4, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_at_any_call_it_loses_no_row_and_ends_the_same(
    three_shards: Path, rows: Rows, tmp_path: Path, child: Callable, step: int
) -> None:
    keep = {"image": needed(rows, (0, 200), (300, 2), (305, 295)), "text": needed(rows, (1010, 5))}
    ranges = ((0, 200), (300, 2), (305, 295))
    whole = shutil.copytree(three_shards, tmp_path / "whole")
    collect(whole, keep)

    def collect_and_die(path: Path, at: int) -> Callable[[], None]:
        def work() -> None:
            count = begun = 0

            def watch(frame: FrameType, event: str, function: object) -> None:
                nonlocal count, begun
                begun |= frame.f_code.co_name == "_collect"  # the writer has the store; what it does then is counted
                if begun and event == "c_call" and getattr(function, "__name__", "") in WATCHED:
                    count += 1
                    if count == at:
                        os.kill(os.getpid(), signal.SIGKILL)

            sys.setprofile(watch)
            collect(path, keep)

        return work

    at, died = 1, -signal.SIGKILL
    while died == -signal.SIGKILL:
        path = shutil.copytree(three_shards, tmp_path / str(at))
        died = child(collect_and_die(path, at))
        store = Store.open(path, verify="always")  # as the kill left it
        for table, keys in keep.items():
            assert (store.find(table, keys) >= 0).all()
        assert store.load("image").shape[0] == store.tables["image"].rows
        collect(path, keep)
        check(path, "image", rows, *ranges)
        assert files(path) == files(whole), f"killed at call {at}"
        assert [f.code for f in verify(path) if f.level != "note"] == []
        shutil.rmtree(path)
        at += step
    assert died == 0 and at > 10


def test_setting_a_shard_aside_keeps_its_bytes_and_the_others(three_shards: Path, rows: Rows) -> None:
    data = (three_shards / "image-00001.h5").read_bytes()
    with Rewriter.of(three_shards, "test") as w:
        (aside,) = w.set_aside(["image-00001.h5"])
    assert (three_shards / aside).read_bytes() == data
    check(three_shards, "image", rows, (0, 300), (305, 295))
    assert load_manifest(three_shards).retired == {"image": 3}
