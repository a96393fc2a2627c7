"""Find rows by content key: sorted 64-bit prefixes, with full comparison of equal ones."""

from __future__ import annotations

import numpy as np

from manifests.identity import KEY_BYTES

_ODD = np.uint64(0x9E3779B97F4A7C15)


def as_keys(keys: np.ndarray, what: str = "keys") -> np.ndarray:
    """Return ``keys`` as uint8 [n, 16]. Raise ValueError."""
    keys = np.asarray(keys)
    if keys.dtype != np.uint8 or keys.ndim != 2 or keys.shape[1] != KEY_BYTES:
        raise ValueError(f"{what} must be uint8 [n, {KEY_BYTES}], not {keys.dtype} {list(keys.shape)}")
    return np.ascontiguousarray(keys)


class KeyIndex:
    """Index of keys in row order. ``add`` takes amortized O(log n) per key: sorted runs are merged as they grow."""

    def __init__(self, keys: np.ndarray | None = None):
        self._runs: list[tuple[np.ndarray, np.ndarray, np.ndarray, int]] = []  # heads, order, halves, first row
        self.rows = 0
        if keys is not None:
            self.add(keys)

    def add(self, keys: np.ndarray) -> None:
        """Append rows. keys uint8 [n, 16]."""
        halves = as_keys(keys).view(np.uint64)
        start, self.rows = self.rows, self.rows + len(halves)
        while self._runs and len(self._runs[-1][2]) <= 2 * len(halves):
            _, _, before, start = self._runs.pop()
            halves = np.concatenate([before, halves])
        if len(halves):
            heads = _heads(halves)
            order = np.argsort(heads)  # 5x faster than a stable sort, which only equal heads need
            ordered = heads[order]
            if (ordered[1:] == ordered[:-1]).any():
                order = np.argsort(heads, kind="stable")
            self._runs.append((ordered, order, halves, start))

    def find(self, keys: np.ndarray) -> np.ndarray:
        """Return the row of each key, -1 if absent; the first of equal keys. keys uint8 [n, 16] -> int64 [n]."""
        halves = as_keys(keys).view(np.uint64)
        asked = np.argsort(_heads(halves))  # sorted like the runs: one sequential search
        halves = halves[asked]
        found = np.full(len(halves), -1, dtype=np.int64)
        for run_heads, order, rows, start in self._runs:
            todo = np.flatnonzero(found < 0)
            heads = _heads(halves[todo])
            at = np.searchsorted(run_heads, heads)
            while len(todo):  # one iteration, except for keys with equal heads
                inside = at < len(run_heads)
                todo, heads, at = todo[inside], heads[inside], at[inside]
                meets = run_heads[at] == heads
                todo, heads, at = todo[meets], heads[meets], at[meets]
                same = (rows[order[at]] == halves[todo]).all(axis=1)
                found[todo[same]] = order[at[same]] + start
                todo, heads, at = todo[~same], heads[~same], at[~same] + 1
        rows_of = np.empty_like(found)
        rows_of[asked] = found
        return rows_of


def duplicates(keys: np.ndarray) -> np.ndarray:
    """Return the positions of keys that appeared before in ``keys`` uint8 [n, 16] -> int64 [m]."""
    heads = np.sort(_heads(as_keys(keys).view(np.uint64)))
    if not (heads[1:] == heads[:-1]).any():
        return np.empty(0, dtype=np.int64)
    return np.flatnonzero(KeyIndex(keys).find(keys) != np.arange(len(keys)))


def _heads(halves: np.ndarray) -> np.ndarray:
    return halves[:, 0] ^ (halves[:, 1] * _ODD)
