"""How much memory reading takes, and shards that another tool has repacked."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np

from cache import Store


def test_a_repacked_shard_loads(three_shards: Path, rows) -> None:
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
    assert np.array_equal(store.load("image"), rows(0, 600)[1])


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
