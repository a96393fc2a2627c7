"""Other storage formats for an array of rows, each in its common usage; one without its library is skipped."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np


@dataclass(frozen=True)
class Peer:
    """``gather``: row numbers int64 [n], in any order -> [n, D] in that order; ``load``: the table [rows, D].

    ``slow``: a gather takes milliseconds, so fewer calls are timed. ``bytes``: size on disk.
    """

    name: str
    gather: Callable[[np.ndarray], np.ndarray]
    load: Callable[[], np.ndarray]
    slow: bool
    bytes: int


def peers(root: Path, features: np.ndarray) -> Iterator[Peer]:
    """Write ``features`` [rows, D] under ``root`` in each format, and yield the readers."""
    yield _npy(root / "plain.npy", features)
    for chunk in (min(256, len(features)), 1):
        yield _h5py(root / f"chunk-{chunk}.h5", features, chunk)
    for name, make in (("safetensors", _safetensors), ("lmdb", _lmdb), ("zarr", _zarr)):
        if importlib.util.find_spec(name) is not None:
            yield make(root / f"plain.{name}", features)


def _npy(path: Path, features: np.ndarray) -> Peer:
    np.save(path, features)
    rows = np.load(path, mmap_mode="r")
    return Peer("np.memmap / np.load", lambda pick: rows[pick], lambda: np.load(path), False, path.stat().st_size)


def _h5py(path: Path, features: np.ndarray, chunk: int) -> Peer:
    with h5py.File(path, "w") as file:
        file.create_dataset("features", data=features, chunks=(chunk, features.shape[1]))
    file = h5py.File(path, "r")

    def gather(pick: np.ndarray) -> np.ndarray:
        unique, places = np.unique(pick, return_inverse=True)  # h5py requires unique rows in order
        return file["features"][unique][places]

    return Peer(f"h5py, chunk ({chunk}, D)", gather, lambda: file["features"][:], True, path.stat().st_size)


def _safetensors(path: Path, features: np.ndarray) -> Peer:
    from safetensors import safe_open
    from safetensors.numpy import load_file, save_file

    save_file({"features": features}, path)
    rows = safe_open(path, framework="numpy").get_slice("features")

    def gather(pick: np.ndarray) -> np.ndarray:  # none in the API: read row by row
        return np.concatenate([rows[n : n + 1] for n in pick.tolist()])

    return Peer("safetensors", gather, lambda: load_file(path)["features"], True, path.stat().st_size)


def _lmdb(path: Path, features: np.ndarray) -> Peer:
    import lmdb

    dim = features.shape[1]
    # a page has at least two entries, or an entry takes whole pages: size for the worst case
    room = 2 * features.nbytes + 8192 * len(features) + (64 << 20)
    environment = lmdb.open(str(path), map_size=room, subdir=False, readahead=True)
    with environment.begin(write=True) as transaction:
        for n, row in enumerate(features):
            transaction.put(n.to_bytes(8, "big"), row.tobytes(), append=True)

    def gather(pick: np.ndarray) -> np.ndarray:
        with environment.begin(buffers=True) as transaction:
            found = [np.frombuffer(transaction.get(n.to_bytes(8, "big")) or b"", features.dtype) for n in pick.tolist()]
            return np.stack(found)

    def load() -> np.ndarray:
        out = np.empty(features.shape, features.dtype)
        with environment.begin(buffers=True) as transaction:
            for n, (_, value) in enumerate(transaction.cursor()):
                out[n] = np.frombuffer(value, features.dtype, dim)
        return out

    return Peer("LMDB", gather, load, True, path.stat().st_blocks * 512)


def _zarr(path: Path, features: np.ndarray) -> Peer:
    import zarr

    chunks = (min(256, len(features)), features.shape[1])
    rows = zarr.create_array(str(path), data=features, chunks=chunks, compressors=None)
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return Peer("zarr", lambda pick: np.asarray(rows.oindex[pick]), lambda: np.asarray(rows[:]), True, size)
