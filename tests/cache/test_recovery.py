"""SIGKILL at any instant: what was committed stays whole, and resuming gives the store of an uninterrupted run."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cache import Store, StoreCorruptError, StoreNotFoundError, StoreWriter, verify
from cache.hdf5 import write_hdf5
from cache.ledger import Ledger
from cache.manifest import load_manifest
from cache.shards import expected_attributes
from tests.processes import forked

SHARDS, ROWS, DIM = 3, 40, 64


def features_of(keys: np.ndarray) -> np.ndarray:
    """float16 [n, DIM]: follow from the keys, so that any row can be checked by itself."""
    seeds = keys.view(np.uint64)[:, :1] % np.uint64(997)
    return np.sin(seeds + np.arange(DIM)).astype(np.float16)


def keys_of(table: str) -> np.ndarray:
    return np.frombuffer(random.Random(table).randbytes(16 * ROWS * SHARDS), dtype=np.uint8).reshape(-1, 16)


def work(path: Path) -> None:
    """One writer session: what is missing of two tables, a failure and the binding."""
    with StoreWriter(
        path, dataset="demo", extractor="clip", fields={"weights": "abc"}, execution={"pid": os.getpid()}
    ) as w:
        w.bind({"before": keys_of("image")[0].tobytes()})
        w.fail("image", "broken", "decode", "truncated")
        for table in ("image", "text"):
            keys = keys_of(table)
            for start in range(0, len(keys), ROWS):
                part = keys[start : start + ROWS]
                part = part[w.missing(table, part)]
                if len(part):
                    w.commit(table, part, features_of(part))
        w.bind({f"image {n}": key.tobytes() for n, key in enumerate(keys_of("image"))})


def committed(path: Path) -> int:
    """Rows that are committed now, each checked; 0 before there is a store."""
    try:
        store = Store.open(path)
    except StoreNotFoundError:
        return 0
    for table in store.tables:
        keys = store.keys(table)
        assert np.array_equal(store.load(table), features_of(keys))
        assert np.array_equal(keys, keys_of(table)[: len(keys)])
    assert store.catalogue().get("before", keys_of("image")[0].tobytes()) == keys_of("image")[0].tobytes()
    assert {f.level for f in verify(path)} <= {"note", "warning"}
    return sum(info.rows for info in store.tables.values())


def identity(path: Path) -> tuple[dict[str, bytes], dict]:
    """All that must not depend on interruptions: shards and catalog byte for byte, and the manifest but its log."""
    manifest = json.loads((path / "manifest.json").read_text())
    del manifest["execution"], manifest["digest"]
    return {file.name: file.read_bytes() for file in path.glob("*.h5")}, manifest


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "store"
    work(path)
    assert committed(path) == 2 * SHARDS * ROWS
    return path


def check_finished(path: Path, uninterrupted: Path) -> None:
    assert committed(path) == 2 * SHARDS * ROWS
    assert identity(path) == identity(uninterrupted)
    assert [f.code for f in verify(path)] == ["place"]  # no debris, nothing set aside
    assert len(Store.open(path).receipts()) == 2 * SHARDS and len(Store.open(path).failures()) == 1


def test_five_kills_at_random_moments(tmp_path: Path, uninterrupted: Path) -> None:
    path, rng, seen, kills = tmp_path / "store", random.Random(7), 0, 0

    def announced() -> None:
        print("ready", flush=True)
        work(path)

    while kills < 5:
        with forked(announced) as program:
            assert program.stdout.readline() == "ready\n"
            time.sleep(rng.uniform(0.001, 0.05))
            os.kill(program.pid, signal.SIGKILL)
        kills += program.process.exitcode == -signal.SIGKILL
        now = committed(path)
        assert now >= seen  # nothing that was there is gone
        seen = now
        if now == 2 * SHARDS * ROWS:  # finished between two kills: once more from the start
            shutil.rmtree(path)
            seen = 0
    work(path)
    check_finished(path, uninterrupted)


def watched(path: Path, kill_at: tuple[str, int, bool] = ("", 0, False)) -> Counter[str]:
    """``work``, and how often it called each built-in function (every system call is one).

    ``kill_at``: name, n, after: SIGKILL just before the n-th call of it, or just after. "" stands for any function.
    """
    calls: Counter[str] = Counter()
    name, nth, after = kill_at

    def profile(frame: object, event: str, argument: object) -> None:
        if event in ("c_call", "c_return"):
            if event == "c_call":
                calls.update((argument.__name__, ""))
            mine = name in ("", argument.__name__) and event == ("c_return" if after else "c_call")
            if mine and calls[name] == nth:
                os.kill(os.getpid(), signal.SIGKILL)

    threading.setprofile(profile)  # the disk is written by a thread
    sys.setprofile(profile)
    try:
        work(path)
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    return calls


@pytest.mark.slow  # kills at random moments are in every run
def test_kills_between_any_two_calls(tmp_path: Path, uninterrupted: Path, child: Callable) -> None:
    rng, calls, killed = random.Random(3), watched(tmp_path / "watched"), 0
    steps = [("", n, False) for n in rng.sample(range(1, calls[""]), 4)]
    for name in ("replace", "fsync", "write", "unlink"):
        nth = rng.randint(1, calls[name])
        steps += [(name, nth, False), (name, nth, True)]
    for n, step in enumerate(steps):
        path = tmp_path / str(n)
        killed += child(lambda step=step, path=path: watched(path, step)) == -signal.SIGKILL
        before = committed(path)
        if n % 3 == 0:  # killed again while it resumes
            child(lambda step=step, path=path: watched(path, ("", step[1] % 400 + 1, False)))
            assert committed(path) >= before
        work(path)
        check_finished(path, uninterrupted)
    assert killed >= len(steps) // 2  # the number of calls differs between runs: some end before their step


def orphan(path: Path, keys: np.ndarray, receipt: bool = True, name: str = "image-00003.h5", **header: object) -> Path:
    """A renamed shard that the manifest does not name, as a kill between rename and manifest leaves it."""
    manifest = load_manifest(path)
    before = (path / "manifest.json").read_bytes()
    if receipt and not header:
        with StoreWriter(path, dataset="demo", extractor="clip", fields={"weights": "abc"}) as w:
            w.commit("image", keys, features_of(keys))
        (path / "manifest.json").write_bytes(before)
    else:
        about = {**expected_attributes(manifest, "image", 3, len(keys), DIM), **header}
        write_hdf5(path / name, {"features": features_of(keys), "keys": keys}, about)
    return path / name


def resume(path: Path) -> Store:
    StoreWriter(path, dataset="demo", extractor="clip", fields={"weights": "abc"}).close()
    return Store.open(path)


def test_a_finished_shard_is_taken_back(tmp_path: Path, uninterrupted: Path) -> None:
    path, keys = shutil.copytree(uninterrupted, tmp_path / "store"), np.full((3, 16), 7, np.uint8)
    keys[:, 0] = range(3)
    orphan(path, keys)
    assert Store.open(path).find("image", keys).tolist() == [-1, -1, -1]
    assert [f.code for f in verify(path)] == ["orphan", "place"]
    store = resume(path)
    assert store.find("image", keys).tolist() == [120, 121, 122] and committed_rows(store, keys)


def test_the_way_out_of_a_damaged_shard(tmp_path: Path, uninterrupted: Path) -> None:
    """What the error message says: without the shard and the manifest, only that shard's rows are done again."""
    path = shutil.copytree(uninterrupted, tmp_path / "store")
    (path / "image-00001.h5").write_bytes(b"damaged")
    with pytest.raises(StoreCorruptError, match=r"image-00001.h5 has 7 bytes, not .*delete it and manifest.json"):
        work(path)
    (path / "image-00001.h5").unlink()
    (path / "manifest.json").unlink()
    work(path)
    store = Store.open(path)
    assert [s.file for s in store.tables["image"].shards] == ["image-00000.h5", "image-00002.h5", "image-00003.h5"]
    assert not (store.find("image", keys_of("image")) < 0).any() and committed_rows(store, keys_of("image"))
    assert [f.code for f in verify(path)] == ["place"]


def committed_rows(store: Store, keys: np.ndarray) -> bool:
    return np.array_equal(store.gather("image", store.find("image", keys)), features_of(keys))


def test_what_does_not_verify_is_set_aside(tmp_path: Path, uninterrupted: Path) -> None:
    keys = np.arange(48, dtype=np.uint8).reshape(3, 16)

    def changed(path: Path) -> None:
        file = orphan(path, keys)
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(bytes(data))

    def signed_but_foreign(path: Path) -> None:
        file = orphan(path, keys, fingerprint="0" * 64)
        _sign(path, file)

    def signed_but_known(path: Path) -> None:
        _sign(path, orphan(path, keys_of("image")[:3], number=3))

    def other_width(path: Path) -> None:
        file = path / "image-00003.h5"
        about = expected_attributes(load_manifest(path), "image", 3, 3, 5)
        write_hdf5(file, {"features": np.ones((3, 5), np.float16), "keys": keys}, about)
        _sign(path, file)

    cases = [lambda p: orphan(p, keys, receipt=False), changed, signed_but_foreign, signed_but_known, other_width]
    cases.append(lambda p: (p / "image-00009.h5").write_bytes(b"no HDF5"))
    for n, damage in enumerate(cases):
        path = shutil.copytree(uninterrupted, tmp_path / str(n))
        damage(path)
        resume(path)
        (aside,) = path.glob("*.rejected")
        assert aside.name.startswith("image-0000") and not list(path.glob("image-0000[3-9].h5"))
        assert identity(path)[1] == identity(uninterrupted)[1]
        assert [f.code for f in verify(path)] == ["rejected", "place"]


def _sign(path: Path, file: Path) -> None:
    from cache.ledger import Receipt
    from cache.stat_cache import sha256_of

    Ledger(path).add_receipt(Receipt("image", file.name, 3, 0.0, "", file.stat().st_size, sha256_of(file)))


def test_temporary_files_are_removed_and_strange_ones_kept(tmp_path: Path, uninterrupted: Path) -> None:
    path = shutil.copytree(uninterrupted, tmp_path / "store")
    (path / ".image-00003.h5.123-0a1b2c3d.tmp").write_bytes(b"half a shard")
    (path / ".manifest.json.123-0a1b2c3d.tmp").write_bytes(b"{")
    (path / "notes.txt").write_text("a user's own")
    (path / "composers").mkdir()
    assert committed(path) == 2 * SHARDS * ROWS
    resume(path)
    assert {"notes.txt", "composers"} <= {f.name for f in path.iterdir()} and not list(path.glob(".*.tmp"))
