"""The shards of a table mapped side by side into one stretch of addresses, so that rows of many shards are one take.

Numpy gathers rows of one array; a table of many shards is many arrays, and the way round (sort, take from each, put
in order) takes twice as long. So room for the whole table is reserved in the address space, which costs nothing,
and each shard's features are mapped into their place in it once the shard was checked. Places are multiples of both
page and row, so that the whole is one array of rows with unused rows between shards. Unlike mmap objects, this
holds no file descriptor a shard.

Only where the system is known (Linux, macOS) and the features of every shard begin at a page; ``Region.of`` gives
None elsewhere, and each shard is then mapped by itself.
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

_FIXED = 0x10  # MAP_FIXED of Linux and macOS: put it there; mmap has no name for it
_MOST = 1 << 46  # bytes of addresses; processors have 2**47 or more


class Region:
    """Rows of a table as one array of void items; ``place`` maps a shard, ``take`` gathers from placed ones."""

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
        self._straight = not self._shift.any()  # full shards leave no room between them
        self._placed = np.zeros(len(sizes), dtype=bool)
        self._complete = False

    @classmethod
    def of(cls, table: TableInfo) -> Region | None:
        """Room for ``table``, or None where that cannot be had."""
        pages = all(s.features_at is not None and s.features_at % mmap.PAGESIZE == 0 for s in table.shards)
        if _libc is None or not pages:
            return None
        try:
            return cls(table)
        except OSError:  # the process may not have that many addresses
            return None

    def locate(self, rows: np.ndarray) -> tuple[np.ndarray, list[int]]:
        """Items of row numbers int64 [n] (all within the table), and the shards among them still to be placed."""
        if self._complete and self._straight:
            return rows, []
        shards = self._ends.searchsorted(rows, side="right")
        todo = [] if self._complete else np.unique(shards[~self._placed[shards]]).tolist()
        return rows + self._shift.take(shards, mode="clip"), todo

    def place(self, number: int, path: Path, shard: ShardInfo) -> None:
        """Map the features of shard ``number``. Raises OSError. Twice, from two threads, does no harm."""
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
        # "clip": they are within bounds, and numpy's "raise" would copy the result once more
        self._items.take(items, out=out.view(f"V{self._width}")[:, 0], mode="clip")


class _Room:
    """Addresses for ``size`` bytes, seen as void items of ``width`` bytes, for as long as an array of them lives."""

    def __init__(self, size: int, width: int):
        self.address = _map(None, size, 0, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
        weakref.finalize(self, _libc.munmap, self.address, size).atexit = False  # a thread may still read
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
    found = _libc.mmap(address, size, access, kind, descriptor, offset)
    if found is None or found == ctypes.c_void_p(-1).value:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return found
