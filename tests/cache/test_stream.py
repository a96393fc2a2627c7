"""Reading in parts, and how much memory reading takes."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from cache import Store, StoreCorruptError, StoreError, StoreLookupError


@pytest.mark.parametrize("block", [1, 7, 300, 305, 599, 600, 10_000])
def test_a_stream_is_the_table_in_parts(three_shards: Path, rows, block: int) -> None:
    store = Store.open(three_shards)
    parts = list(store.stream("image", block))
    assert [len(p) for p in parts] == [block] * (600 // block) + [600 % block] * (600 % block > 0)
    assert np.array_equal(np.concatenate(parts), rows(0, 600)[1])
    picked = np.arange(599, -1, -3)
    assert np.array_equal(np.concatenate(list(store.stream("image", block, rows=picked))), rows(0, 600)[1][picked])
    buffer = np.empty((block, 8), np.float16)
    copies = [part.copy() for part in store.stream("image", block, out=buffer)]
    assert np.array_equal(np.concatenate(copies), rows(0, 600)[1])
    assert list(store.stream("text", block, rows=np.empty(0, int))) == []


def test_reading_from_a_row_on(three_shards: Path, rows) -> None:
    store, out = Store.open(three_shards), np.empty((310, 8), np.float16)
    assert store.read("image", 290, out) is out and np.array_equal(out, rows(290, 310)[1])
    for start in (291, -1, 1.5, 600):
        with pytest.raises(StoreLookupError, match="has rows 0 to 599, asked for 310 from row"):
            store.read("image", start, out)
    with pytest.raises(StoreError, match="out must be"):
        store.read("text", 0, out)
    for block in (0, -1, 2.0, None):
        with pytest.raises(StoreError, match="block must be"):
            next(store.stream("image", block))
    with pytest.raises(StoreLookupError, match="no rows of table 'query'"):
        next(store.stream("query"))
    with pytest.raises(StoreLookupError, match="outside"):
        next(store.stream("image", rows=np.array([600])))


def test_a_repacked_shard_streams_too(three_shards: Path, rows, monkeypatch) -> None:
    from dataclasses import replace

    from cache.manifest import load_manifest
    from cache.stat_cache import sha256_of

    file = three_shards / "image-00000.h5"
    with h5py.File(file, "r") as old:
        about, arrays = dict(old.attrs), {name: old[name][:] for name in old}
    with h5py.File(file, "w") as new:
        new.attrs.update(about)
        for name, array in arrays.items():
            new.create_dataset(name, data=array, chunks=(50, array.shape[1]), compression="gzip")
    manifest = load_manifest(three_shards)
    info = manifest.tables["image"]
    first = replace(info.shards[0], bytes=file.stat().st_size, sha256=sha256_of(file), features_at=None, keys_at=None)
    tables = {**manifest.tables, "image": replace(info, shards=(first, *info.shards[1:]))}
    replace(manifest, tables=tables).save(three_shards)
    store = Store.open(three_shards)
    assert np.array_equal(np.concatenate(list(store.stream("image", 77))), rows(0, 600)[1])
    assert np.array_equal(store.load("image"), rows(0, 600)[1])


def test_a_damaged_shard_ends_the_stream_where_it_begins(three_shards: Path, rows) -> None:
    data = bytearray((three_shards / "image-00002.h5").read_bytes())
    data[4200] ^= 1
    (three_shards / "image-00002.h5").write_bytes(bytes(data))
    stream, seen = Store.open(three_shards).stream("image", 61), 0
    with pytest.raises(StoreCorruptError, match=r"image-00002\.h5 was changed"):
        for part in stream:
            seen += len(part)
    assert seen == 305


def peak(work: Callable[[], object]) -> int:
    """Most bytes that ``work`` held at a time: Python's and numpy's. Mapped pages of files are the system's to drop."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_is_bounded_by_the_result(path: Path, writer, rows) -> None:
    row, many = 256 * 4, 6000
    keys = rows(0, many)[0]
    features = np.random.default_rng(0).standard_normal((many, 256), dtype=np.float32)
    with writer() as w:
        for start in range(0, many, 1500):
            w.commit("image", keys[start : start + 1500], features[start : start + 1500])
    slack = 1 << 19
    store, picked = Store.open(path), np.random.default_rng(1).integers(0, many, 256)
    assert peak(lambda: store.gather("image", picked)) < 256 * row + slack  # the digest of every shard included
    every, out = np.arange(many), np.empty((many, 256), np.float32)
    assert peak(lambda: Store.open(path).gather("image", every)) < many * row + slack
    assert peak(lambda: Store.open(path).load("image", out=out)) < slack
    assert peak(lambda: Store.open(path).gather("image", every, out=out)) < slack
    assert np.array_equal(out, features)
    assert peak(lambda: [None for _ in Store.open(path).stream("image", 512)]) < 2 * 512 * row + slack
