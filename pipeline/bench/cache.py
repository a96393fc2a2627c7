"""Compare the feature store with other storage formats, interleaved in one run, as medians.

Every contender of a comparison runs once per round, in rotating order, so that a busy machine slows them equally:
read the ratios, not the milliseconds. All files are in the system's page cache.
"""

from __future__ import annotations

import hashlib
import os
import statistics
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from cache import Store, StoreWriter, store_path
from pipeline.bench._cache_peers import Peer, peers

SHARD_ROWS = 16_384
GATHERED = 256
_CALLS, _SLOW_CALLS = 100, 2  # gathers per round
_PLAIN = "np.memmap / np.load"
_COUNTS = ("rows", "shards", "bytes")
_ABOUT: dict[str, Any] = {"dataset": "bench", "extractor": "random", "fields": {"seed": 0}}


def run(
    rows: int = 100_000, dim: int = 512, repeats: int = 5, shards: int = 1_000, folder: str | Path | None = None
) -> dict[str, Any]:
    """Measure on random unit-norm float16 rows [rows, dim]; ``folder``: location of the temporary files.

    Returns plain numbers by comparison: seconds of each contender (median of ``repeats``), and ratios; a ratio above 1
    means that the store is faster, or for ``disk`` larger, than the peer.
    """
    rng = np.random.default_rng(0)
    keys = np.frombuffer(rng.bytes(16 * rows), dtype=np.uint8).reshape(rows, 16)
    features = np.empty((rows, dim), dtype=np.float16)
    for start in range(0, rows, SHARD_ROWS):
        part = rng.standard_normal((min(SHARD_ROWS, rows - start), dim), dtype=np.float32)
        features[start : start + len(part)] = part / np.linalg.norm(part, axis=1, keepdims=True)
    with tempfile.TemporaryDirectory(dir=folder) as name:
        root = Path(name)
        path = store_path(root, "bench", "random", _ABOUT["fields"])
        with StoreWriter(path, **_ABOUT) as writer:
            for start in range(0, rows, SHARD_ROWS):
                writer.commit("query", keys[start : start + SHARD_ROWS], features[start : start + SHARD_ROWS])
        others = list(peers(root, features))
        _same(Store.open(path), others, features, rng)
        disk = _disk(path, features, keys, others)
        raw, some = features.nbytes, (features[:SHARD_ROWS].copy(), keys[:SHARD_ROWS])
        del features, part
        time.sleep(2.5)  # digests of files written just now are not trusted without reading them
        load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
        setting = {"rows": rows, "dim": dim, "dtype": "float16", "repeats": repeats, "shard_rows": SHARD_ROWS}
        result = {
            "setting": {**setting, "processors": os.cpu_count(), "load_average": load},
            "gather": _gather(path, others, rows, repeats, rng),
            "memory": _memory(path, rows, rng),
            "load": _load(path, others, repeats, raw),
            "commit": _commit(root, *some, repeats),
            "disk": disk,
            "resume": _resume(path, keys, repeats),
            "open": _open(root, shards, repeats),
        }
        return result | {"goals": _goals(result)}


def interleaved(
    contenders: dict[str, Callable[[], object]], repeats: int, slow: Collection[str] = ()
) -> dict[str, float]:
    """Return median seconds of each contender over ``repeats`` rounds, after one warm-up round.

    A round is one call of each ``slow`` contender and four of each other one, in rotating order.
    """
    names = list(contenders)
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(4 * (repeats + 1)):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            if turn % 4 and name in slow:
                continue
            began = time.perf_counter()
            contenders[name]()
            if turn >= 4:
                seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in seconds.items()}


def _same(store: Store, others: list[Peer], features: np.ndarray, rng: np.random.Generator) -> None:
    pick = rng.integers(0, len(features), GATHERED)
    for name, gather in [("store", lambda pick: store.gather("query", pick)), *((p.name, p.gather) for p in others)]:
        if not np.array_equal(gather(pick), features[pick]):
            raise RuntimeError(f"{name} gives other rows")


def _gather(path: Path, others: list[Peer], rows: int, repeats: int, rng: np.random.Generator) -> dict[str, Any]:
    """Time the gather of 256 random rows in any order, with repeats, and with another selection per call."""
    store = Store.open(path)
    contenders: dict[str, Callable[[np.ndarray], Any]] = {"store": lambda pick: store.gather("query", pick)}
    contenders |= {peer.name: peer.gather for peer in others}
    slow = {peer.name for peer in others if peer.slow}
    for start in range(0, rows, 4096):  # every page is in memory and mapped
        every = np.arange(start, min(start + 4096, rows))
        store.gather("query", every), others[0].gather(every)
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for call in range(_CALLS * repeats):
        names = [name for name in contenders if call % _CALLS < _SLOW_CALLS or name not in slow]
        for name in names if call % 2 else names[::-1]:
            pick = rng.integers(0, rows, GATHERED)
            began = time.perf_counter()
            contenders[name](pick)
            seconds[name].append(time.perf_counter() - began)
    each = {name: statistics.median(values) for name, values in seconds.items()}
    return {**each, "shards": len(store.tables["query"].shards)} | _ratios(each)


def _memory(path: Path, rows: int, rng: np.random.Generator) -> dict[str, float]:
    """Return the peak bytes during the first gather of an opened store, and the bytes of its result."""
    store, pick = Store.open(path), rng.integers(0, rows, GATHERED)
    tracemalloc.start()
    try:
        result = store.gather("query", pick).nbytes
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    return {"peak": peak, "result": result, "peak/result": peak / result}


def _load(path: Path, others: list[Peer], repeats: int, size: int) -> dict[str, float]:
    """Time loading a whole table: in a reopened store with verified shards, and with every digest computed."""
    Store.open(path).load("query")
    contenders = {
        "store": lambda: Store.open(path).load("query"),
        "store, digests computed": lambda: Store.open(path, verify="always").load("query"),
    }
    slow = {peer.name for peer in others if peer.slow}
    seconds = interleaved(contenders | {peer.name: peer.load for peer in others}, repeats, slow)
    digests = {"digests/np.load": seconds[_PLAIN] / seconds["store, digests computed"]}
    return seconds | _ratios(seconds) | digests | {"bytes": size}


def _commit(root: Path, features: np.ndarray, keys: np.ndarray, repeats: int) -> dict[str, float]:
    """Time a durable commit of one checked shard, and appending the same rows to an open HDF5 file."""
    fields = {"seed": 1}
    path = store_path(root, "bench", "random", fields)
    fresh = keys.copy()
    file, dim = h5py.File(root / "append.h5", "w"), features.shape[1]
    data = file.create_dataset("features", (0, dim), features.dtype, maxshape=(None, dim), chunks=(256, dim))

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
        contenders: dict[str, Callable[[], object]] = {
            "store": lambda: commit(writer),
            "h5py append": lambda: append(durable=False),
            "h5py append + fsync": lambda: append(durable=True),
            "SHA-256 alone": lambda: hashlib.sha256(features).digest(),
        }
        seconds = interleaved(contenders, repeats)
    return {**seconds, "rows": len(features)} | _ratios(seconds)


def _disk(path: Path, features: np.ndarray, keys: np.ndarray, others: list[Peer]) -> dict[str, float]:
    """Return bytes on disk. The peers store no keys."""
    on_disk, raw = Store.open(path).nbytes, features.nbytes + keys.nbytes
    return {"store": on_disk, "raw": raw, "store/raw": on_disk / raw} | {
        f"{peer.name} / features": peer.bytes / features.nbytes for peer in others
    }


def _resume(path: Path, keys: np.ndarray, repeats: int) -> dict[str, float]:
    """Time opening a complete store for writing, and finding that nothing is missing."""

    def resume() -> None:
        with StoreWriter(path, **_ABOUT) as writer:
            if writer.missing("query", keys).any():
                raise RuntimeError("the bench store is not complete")

    return {**interleaved({"store": resume}, repeats), "rows": len(keys)}


def _open(root: Path, shards: int, repeats: int) -> dict[str, float]:
    fields = {"seed": 2}
    path = store_path(root, "bench", "random", fields)
    rng = np.random.default_rng(1)
    with StoreWriter(path, dataset="bench", extractor="random", fields=fields) as writer:
        for _ in range(shards):
            keys = np.frombuffer(rng.bytes(64), dtype=np.uint8).reshape(4, 16)
            writer.commit("query", keys, np.ones((4, 8), dtype=np.float16))
    return {**interleaved({"store": lambda: Store.open(path)}, repeats), "shards": shards}


def _ratios(seconds: dict[str, float]) -> dict[str, float]:
    return {f"store/{name}": value / seconds["store"] for name, value in seconds.items() if name != "store"}


def _goals(result: dict[str, Any]) -> list[dict[str, Any]]:
    h5py = next(name for name in result["gather"] if name.startswith("h5py, chunk (") and "(1," not in name)
    listed = [
        ("gather against np.memmap", result["gather"][f"store/{_PLAIN}"], 0.8, "at least"),
        ("gather against h5py", result["gather"][f"store/{h5py}"], 100, "at least"),
        ("whole load against np.load", result["load"][f"store/{_PLAIN}"], 0.9, "at least"),
        ("commit against a durable h5py append", result["commit"]["store/h5py append + fsync"], 0.7, "at least"),
        ("disk against the raw bytes", result["disk"]["store/raw"], 1.02, "at most"),
        ("seconds to open 1,000 shards", result["open"]["store"] / result["open"]["shards"] * 1000, 0.1, "at most"),
        ("seconds to resume 100,000 rows", result["resume"]["store"] / result["resume"]["rows"] * 1e5, 2.0, "at most"),
        ("memory of a gather against its result", result["memory"]["peak/result"], 2.0, "at most"),
    ]
    met = [found >= goal if bound == "at least" else found <= goal for _, found, goal, bound in listed]
    keys = ("what", "found", "goal", "bound", "met")
    return [dict(zip(keys, (*row, yes), strict=True)) for row, yes in zip(listed, met, strict=True)]


def render(result: dict[str, Any]) -> str:
    setting = result["setting"]
    lines = [
        f"{setting['rows']:,} x {setting['dim']} {setting['dtype']}, median of {setting['repeats']} interleaved rounds, "
        f"load average {setting['load_average'] or 0:.1f} on {setting['processors']} processors"
    ]
    for title, what in (
        ("gather", f"{GATHERED} random rows"),
        ("load", "whole table"),
        ("commit", f"{result['commit']['rows']:,} rows, checked, digest, fsync"),
    ):
        lines.append(f"{title}: {what}")
        figures = result[title]
        for name in (n for n in figures if n in ("store", _PLAIN) or ("/" not in n and n not in _COUNTS)):
            ratio = figures.get(f"store/{name}")
            faster = "" if ratio is None else f"   store {ratio:.2f}x as fast"
            lines.append(f"  {name:<24} {figures[name] * 1e3:10.3f} ms{faster}")
    others = ", ".join(f"{n.split(' / features')[0]} {v:.3f}" for n, v in result["disk"].items() if " / features" in n)
    lines += [
        f"disk: {result['disk']['store/raw']:.4f}x the raw bytes of features and keys (features alone: {others})",
        f"memory of a gather at its peak: {result['memory']['peak/result']:.2f}x its result",
        f"resume with nothing to do, {result['resume']['rows']:,} rows: {result['resume']['store'] * 1e3:.1f} ms",
        f"open a store of {result['open']['shards']:,} shards: {result['open']['store'] * 1e3:.1f} ms",
        "goals:",
    ]
    for goal in result["goals"]:
        met = "met" if goal["met"] else "NOT met"
        lines.append(f"  {goal['what']:<38} {goal['found']:>9.3f}  {goal['bound']} {goal['goal']:g}: {met}")
    return "\n".join(lines)
