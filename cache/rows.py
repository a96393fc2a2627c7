"""Read the rows of a checked shard: by a memory map if they are contiguous, else through h5py."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cache.files import read_into
from cache.hdf5 import open_hdf5
from cache.manifest import ShardInfo, TableInfo
from manifests.identity import KEY_BYTES

_BLOCK = 256


class ScatteredRows:
    """Features of a repacked (e.g. compressed) shard. Slow but correct: reads the required blocks."""

    def __init__(self, path: Path, info: ShardInfo, table: TableInfo):
        self.path, self.info, self.table = path, info, table

    def take(self, rows: np.ndarray, axis: int = 0) -> np.ndarray:
        """Gather rows int64 [n] -> [n, D], as ndarray.take with axis 0. Raise OSError."""
        found = np.empty((len(rows), self.table.dim), dtype=self.table.dtype)
        blocks = rows // _BLOCK
        with open_hdf5(self.path) as file:
            for block in np.unique(blocks):
                mine = blocks == block
                found[mine] = file["features"][block * _BLOCK : (block + 1) * _BLOCK][rows[mine] - block * _BLOCK]
        return found


def map_features(path: Path, info: ShardInfo, table: TableInfo) -> np.ndarray | ScatteredRows:
    """Map the features [rows, D] read-only, without reading them. Both kinds have ``take(rows, axis=0)``."""
    if info.features_at is None:
        return ScatteredRows(path, info, table)
    kind = np.dtype(table.dtype).newbyteorder("<")
    return np.asarray(np.memmap(path, kind, "r", offset=info.features_at, shape=(info.rows, table.dim)))


def read_features(path: Path, info: ShardInfo, out: np.ndarray) -> None:
    """Read the features of a shard into ``out`` [rows, D], without a second copy. Raise OSError."""
    if info.features_at is None:
        with open_hdf5(path) as file:
            file["features"].read_direct(out)
    elif read_into(path, memoryview(out.reshape(-1).view(np.uint8)), info.features_at) != out.nbytes:
        raise OSError("it ends before its rows do")


def read_keys(path: Path, info: ShardInfo) -> np.ndarray:
    """Read the keys uint8 [rows, 16] of a shard. Raise OSError."""
    keys = np.empty((info.rows, KEY_BYTES), dtype=np.uint8)
    if info.keys_at is None:
        with open_hdf5(path) as file:
            file["keys"].read_direct(keys)
    elif read_into(path, memoryview(keys.reshape(-1)), info.keys_at) != keys.nbytes:
        raise OSError("it ends before its keys do")
    return keys
