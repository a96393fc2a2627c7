"""What ``bench cache`` measures: the feature store beside plain files, in one run, interleaved, as medians.

Every contender of a comparison runs once a round, in an order that turns from round to round, so that a busy
machine slows them alike: read the ratios, not the milliseconds. All files are in the system's page cache.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from cache import Store, StoreWriter, store_path

SHARD_ROWS = 16_384
GATHERED = 256
_CALLS = 100  # gathers in a round
_ABOUT: dict[str, Any] = {"dataset": "bench", "extractor": "random", "fields": {"seed": 0}}


def run(
    rows: int = 100_000, dim: int = 512, repeats: int = 5, shards: int = 1_000, folder: str | Path | None = None
) -> dict[str, Any]:
    """Measure on random unit-norm float16 rows [rows, dim]; ``folder``: where the temporary files go.

    Gives plain numbers by comparison: seconds of each contender (median of ``repeats``), and ratios, in which more
    than 1 means that the store is faster, or for ``disk`` larger, than what it is compared with.
    """
    rng = np.random.default_rng(0)
    keys = np.frombuffer(rng.bytes(16 * rows), dtype=np.uint8).reshape(rows, 16)
    features = rng.standard_normal((rows, dim), dtype=np.float32)
    features = (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float16)
    with tempfile.TemporaryDirectory(dir=folder) as name:
        root = Path(name)
        path = store_path(root, "bench", "random", _ABOUT["fields"])
        with StoreWriter(path, **_ABOUT) as writer:
            for start in range(0, rows, SHARD_ROWS):
                writer.commit("query", keys[start : start + SHARD_ROWS], features[start : start + SHARD_ROWS])
        np.save(root / "plain.npy", features)
        with h5py.File(root / "plain.h5", "w") as file:
            file.create_dataset("features", data=features, chunks=(min(256, rows), dim))
        time.sleep(2.5)  # files that were written this moment are not trusted without reading them
        return {
            "setting": {
                "rows": rows, "dim": dim, "dtype": "float16", "repeats": repeats, "shard_rows": SHARD_ROWS,
                "processors": os.cpu_count(), "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
            },
            "gather": _gather(path, root, rows, repeats, rng),
            "load": _load(path, root, repeats),
            "commit": _commit(root, features[:SHARD_ROWS], keys[:SHARD_ROWS], repeats),
            "disk": _disk(path, features, keys),
            "resume": _resume(path, keys, repeats),
            "open": _open(root, shards, repeats),
        }  # fmt: skip


def interleaved(contenders: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median seconds of each contender over ``repeats`` rounds, after one that does not count."""
    names, seconds = list(contenders), {name: [] for name in contenders}
    for turn in range(repeats + 1):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            began = time.perf_counter()
            contenders[name]()
            if turn:
                seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in seconds.items()}


def _gather(path: Path, root: Path, rows: int, repeats: int, rng: np.random.Generator) -> dict[str, float]:
    """256 random rows, in any order (h5py: sorted and unique, as it demands). Another pick each call, in turn."""
    store, plain = Store.open(path), np.load(root / "plain.npy", mmap_mode="r")
    store.gather("query", np.arange(rows)[:: max(1, rows // 4096)])
    seconds: dict[str, list[float]] = {"store": [], "memmap": [], "h5py": []}
    with h5py.File(root / "plain.h5", "r") as file:
        contenders: dict[str, Callable[[np.ndarray], Any]] = {
            "store": lambda pick: store.gather("query", pick),
            "memmap": lambda pick: plain[pick],
            "h5py": lambda pick: file["features"][np.unique(pick)],
        }
        for call in range(_CALLS * repeats):
            names = list(contenders)[:2]
            names = [*(names if call % 2 else names[::-1]), *(["h5py"] if call % _CALLS < 2 else [])]
            for name in names:
                pick = rng.integers(0, rows, GATHERED)
                began = time.perf_counter()
                contenders[name](pick)
                seconds[name].append(time.perf_counter() - began)
    each = {name: statistics.median(values) for name, values in seconds.items()}
    return {**each, "shards": len(store.tables["query"].shards)} | _ratios(each, "store")


def _load(path: Path, root: Path, repeats: int) -> dict[str, float]:
    """A whole table: in a store opened anew whose shards were found whole before, and with every digest computed."""
    Store.open(path).load("query")
    seconds = interleaved(
        {
            "store": lambda: Store.open(path).load("query"),
            "store, digests computed": lambda: Store.open(path, verify="always").load("query"),
            "np.load": lambda: np.load(root / "plain.npy"),
        },
        repeats,
    )
    return (
        seconds
        | _ratios(seconds, "store")
        | {"digests/np.load": seconds["np.load"] / seconds["store, digests computed"]}
    )


def _commit(root: Path, features: np.ndarray, keys: np.ndarray, repeats: int) -> dict[str, float]:
    """One shard, checked, with its digest, durable; beside appending the same rows to an open HDF5 file."""
    fields = {"seed": 1}
    path = store_path(root, "bench", "random", fields)
    fresh = keys.copy()
    file = h5py.File(root / "append.h5", "w")
    data = file.create_dataset(
        "features",
        (0, features.shape[1]),
        features.dtype,
        maxshape=(None, features.shape[1]),
        chunks=(256, features.shape[1]),
    )

    def append(durable: bool) -> None:
        data.resize(len(data) + len(features), axis=0)
        data[-len(features) :] = features
        file.flush()
        if durable:
            os.fsync(file.id.get_vfd_handle())

    def commit(writer: StoreWriter) -> None:
        fresh.view(np.uint64)[:] += np.uint64(1)
        writer.commit("query", fresh, features)

    with file, StoreWriter(path, dataset="bench", extractor="random", fields=fields) as writer:
        seconds = interleaved(
            {
                "store": lambda: commit(writer),
                "h5py append": lambda: append(durable=False),
                "h5py append + fsync": lambda: append(durable=True),
            },
            repeats,
        )
    return {**seconds, "rows": len(features)} | _ratios(seconds, "store")


def _disk(path: Path, features: np.ndarray, keys: np.ndarray) -> dict[str, float]:
    on_disk, raw = Store.open(path).nbytes, features.nbytes + keys.nbytes
    return {"store": on_disk, "raw": raw, "store/raw": on_disk / raw}


def _resume(path: Path, keys: np.ndarray, repeats: int) -> dict[str, float]:
    """Opening a complete store to write, and finding that nothing is missing."""

    def resume() -> None:
        with StoreWriter(path, **_ABOUT) as writer:
            if writer.missing("query", keys).any():
                raise RuntimeError("the bench store is not complete")

    return {**interleaved({"store": resume}, repeats), "rows": len(keys)}


def _open(root: Path, shards: int, repeats: int) -> dict[str, float]:
    """Opening a store of many shards."""
    fields = {"seed": 2}
    path = store_path(root, "bench", "random", fields)
    rng = np.random.default_rng(1)
    with StoreWriter(path, dataset="bench", extractor="random", fields=fields) as writer:
        for _ in range(shards):
            keys = np.frombuffer(rng.bytes(64), dtype=np.uint8).reshape(4, 16)
            writer.commit("query", keys, np.ones((4, 8), dtype=np.float16))
    return {**interleaved({"store": lambda: Store.open(path)}, repeats), "shards": shards}


def _ratios(seconds: dict[str, float], ours: str) -> dict[str, float]:
    return {f"{ours}/{name}": value / seconds[ours] for name, value in seconds.items() if name != ours}


def render(result: dict[str, Any]) -> str:
    """The figures of ``run`` as lines to read: times, then how many times as fast as each other way."""
    setting = result["setting"]
    lines = [
        f"{setting['rows']:,} x {setting['dim']} {setting['dtype']}, median of {setting['repeats']} interleaved rounds, "
        f"load average {setting['load_average'] or 0:.1f}"
    ]
    for title, what in (
        ("gather", f"{GATHERED} random rows"),
        ("load", "whole table"),
        ("commit", f"{result['commit']['rows']:,} rows, checked, digest, fsync"),
    ):
        lines.append(f"{title}: {what}")
        figures = result[title]
        for name in (n for n in figures if "/" not in n and n not in ("rows", "shards")):
            ratio = figures.get(f"store/{name}")
            faster = "" if ratio is None else f"   store {ratio:.2f}x as fast"
            lines.append(f"  {name:<24} {figures[name] * 1e3:10.3f} ms{faster}")
    lines += [
        f"disk: {result['disk']['store/raw']:.4f}x the raw bytes of features and keys",
        f"resume with nothing to do, {result['resume']['rows']:,} rows: {result['resume']['store'] * 1e3:.1f} ms",
        f"open a store of {result['open']['shards']:,} shards: {result['open']['store'] * 1e3:.1f} ms",
    ]
    return "\n".join(lines)
