"""Map the shards of a table into one contiguous address range, so that one take gathers rows of many shards.

NumPy gathers rows of one array; a table of many shards is many arrays, and the alternative (sort, take from each,
reorder) takes twice as long. So the address range of the whole table is reserved, which costs no memory, and each
shard's features are mapped into it once the shard is checked. Offsets are multiples of both page and row size, so the
range is one array of rows with unused rows between shards. Unlike mmap objects, it needs no file descriptor per shard.

Supported on Linux and macOS if the features of every shard are page-aligned; otherwise ``Region.of`` returns None and
each shard is mapped separately.
"""

from __future__ import annotations

import ctypes
import math
import mmap
import os
import sys
import weakref
from pathlib import Path

import numpy as np

from cache.manifest import ShardInfo, TableInfo

_FIXED = 0x10  # MAP_FIXED of Linux and macOS; the mmap module does not define it
_MOST = 1 << 46  # bytes of address space; processors have 2**47 or more


class Region:
    """Rows of a table as one array of void items; ``place`` maps a shard, ``take`` gathers from mapped ones."""

    def __init__(self, table: TableInfo):
        width = np.dtype(table.dtype).itemsize * table.dim
        unit = math.lcm(mmap.PAGESIZE, width)
        sizes = [-(-shard.rows * width // unit) * unit for shard in table.shards]
        if width > _MOST or sum(sizes) > _MOST:
            raise OSError("no table is that large")
        self._width = width
        self._places = np.cumsum([0, *sizes[:-1]])
        room = _Room(sum(sizes), width)
        self._address, self._items = room.address, np.asarray(room)
        self._ends = np.cumsum([shard.rows for shard in table.shards])
        self._shift = self._places // width - (self._ends - [shard.rows for shard in table.shards])
        self._straight = not self._shift.any()  # no gaps between full shards
        self._placed = np.zeros(len(sizes), dtype=bool)
        self._complete = False

    @classmethod
    def of(cls, table: TableInfo) -> Region | None:
        """Reserve the address range of ``table``; None if that is not possible."""
        pages = all(s.features_at is not None and s.features_at % mmap.PAGESIZE == 0 for s in table.shards)
        if _libc is None or not pages:
            return None
        try:
            return cls(table)
        except OSError:  # beyond the address space limit of the process
            return None

    def locate(self, rows: np.ndarray) -> tuple[np.ndarray, list[int]]:
        """Return the items of row numbers int64 [n] (all within the table), and their shards not mapped yet."""
        if self._complete and self._straight:
            return rows, []
        shards = self._ends.searchsorted(rows, side="right")
        todo = [] if self._complete else np.unique(shards[~self._placed[shards]]).tolist()
        return rows + self._shift.take(shards, mode="clip"), todo

    def place(self, number: int, path: Path, shard: ShardInfo) -> None:
        """Map the features of shard ``number``. Raise OSError. Two threads may map the same shard."""
        descriptor = os.open(path, os.O_RDONLY)
        try:
            where = self._address + int(self._places[number])
            _map(
                where, shard.rows * self._width, mmap.PROT_READ, mmap.MAP_SHARED | _FIXED, descriptor, shard.features_at
            )
        finally:
            os.close(descriptor)
        self._placed[number] = True
        self._complete = bool(self._placed.all())

    def take(self, items: np.ndarray, out: np.ndarray) -> None:
        """Gather items int64 [n] into ``out`` [n, D], contiguous."""
        # "clip": items are within bounds, and numpy's "raise" mode would copy the result again
        self._items.take(items, out=out.view(f"V{self._width}")[:, 0], mode="clip")


class _Room:
    """Address range of ``size`` bytes as void items of ``width`` bytes, reserved while an array refers to it."""

    def __init__(self, size: int, width: int):
        self.address = _map(None, size, 0, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
        assert _libc is not None
        weakref.finalize(self, _libc.munmap, self.address, size).atexit = False  # a thread may still be reading
        place = {"data": (self.address, True), "shape": (size // width,), "typestr": f"|V{width}"}
        self.__array_interface__ = {"version": 3, **place}


def _load_libc() -> ctypes.CDLL | None:
    if sys.platform not in ("linux", "darwin") or ctypes.sizeof(ctypes.c_long) != 8:
        return None
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    return libc


_libc = _load_libc()


def _map(address: int | None, size: int, access: int, kind: int, descriptor: int, offset: int | None) -> int:
    assert _libc is not None
    found = _libc.mmap(address, size, access, kind, descriptor, offset)
    if found is None or found == ctypes.c_void_p(-1).value:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return found
