"""Shards of a store, each checked before its first row is read."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cache.errors import StoreCorruptError, StoreError
from cache.layout import MANIFEST, shard_number
from cache.manifest import Manifest, ShardInfo, TableInfo
from cache.region import Region
from cache.rows import ScatteredRows, map_features, read_features
from cache.shards import header_problems
from cache.stat_cache import StatCache

Check = Literal["digest", "always", "header"]


class CheckedShards:
    """Shards that ``manifest`` lists in the directory ``path``; ``verify`` as in ``Store.open``.

    Every method raises StoreCorruptError for a shard that is missing, truncated, changed or swapped.
    """

    def __init__(self, path: Path, manifest: Manifest, verify: Check):
        self.path, self.manifest, self.verify = path, manifest, verify
        self._stamps = StatCache(path)
        self._checked: set[str] = set()
        self._regions: dict[str, Region | None] = {}
        self._maps: dict[str, np.ndarray | ScatteredRows] = {}

    def remember(self) -> None:
        """Save which shards are verified, for other processes."""
        self._stamps.save()

    def gather(self, table: str, rows: np.ndarray, out: np.ndarray) -> None:
        """Gather rows int64 [n], all within the table, into ``out`` [n, D]. Shards are mapped at first use."""
        info = self.manifest.tables[table]
        if table not in self._regions:
            self._regions[table] = Region.of(info)
        region = self._regions[table]
        if region is None:
            self._gather_apart(info, rows, out)
            return
        items, todo = region.locate(rows)
        for n in todo:
            self.read(info.shards[n], info, partial(region.place, n, shard=info.shards[n]))
        region.take(items, out)

    def copy(self, table: str, out: np.ndarray) -> None:
        """Read the whole table into ``out`` [rows, D] by plain reads."""
        info, first = self.manifest.tables[table], 0
        for shard in info.shards:
            part = out[first : first + shard.rows]
            self.read(shard, info, partial(read_features, info=shard, out=part))
            first += shard.rows

    def _gather_apart(self, info: TableInfo, rows: np.ndarray, out: np.ndarray) -> None:
        """Gather shard by shard. Besides the result, memory holds the rows of at most one shard."""
        starts = np.cumsum([0, *(s.rows for s in info.shards)])
        order = rows.argsort()
        ordered = rows[order]
        edges = ordered.searchsorted(starts).tolist()
        for n, shard in enumerate(info.shards):
            mine = slice(edges[n], edges[n + 1])
            if mine.start < mine.stop:
                out[order[mine]] = self._take(shard, info, ordered[mine] - starts[n])

    def _take(self, shard: ShardInfo, info: TableInfo, local: np.ndarray) -> np.ndarray:
        features = self._maps.get(shard.file)
        if features is None:
            while len(self._maps) >= _most_maps():  # close the oldest
                self._maps.pop(next(iter(list(self._maps)), ""), None)
            self._maps[shard.file] = features = self.read(shard, info, partial(map_features, info=shard, table=info))
        try:
            return features.take(local, axis=0)
        except OSError as error:
            raise self._corrupt(self.path / shard.file, f"cannot be read ({error})") from error

    def read(self, shard: ShardInfo, info: TableInfo, how: Callable[[Path], Any]) -> Any:
        """Check the shard, then return ``how(path)``."""
        path = self.path / shard.file
        try:
            if shard.file not in self._checked:
                self._check(path, shard, info)
                self._checked.add(shard.file)
            return how(path)
        except FileNotFoundError:
            raise self._corrupt(path, "is missing") from None
        except (OSError, ValueError) as error:
            if isinstance(error, OSError) and error.strerror:  # no permission, too many open files ...
                raise StoreError(f"cannot read {path}: {error.strerror}") from error
            raise self._corrupt(path, f"cannot be read ({error})") from error

    def _check(self, path: Path, shard: ShardInfo, info: TableInfo) -> None:
        size = path.stat().st_size
        if size != shard.bytes:
            raise self._corrupt(path, f"has {size} bytes, not {shard.bytes}: it was cut off or replaced")
        if self.verify == "header":
            problems = header_problems(path, self.manifest, *shard_number(shard.file), shard, info)
            if problems:
                raise self._corrupt(path, f"was changed: {problems[0]}")
            return
        found = self._stamps.digest(path, shard.sha256, remembered=self.verify == "digest")
        if found != shard.sha256:  # without details from HDF5, which should not parse an unknown file
            raise self._corrupt(path, self.manifest.origin_of(found))

    def _corrupt(self, path: Path, what: str) -> StoreCorruptError:
        return StoreCorruptError(
            f"{path} {what}. None of its rows are used. Restore it from a copy; or delete it and {MANIFEST} next to it "
            "and run the extraction again, which keeps every other shard and computes only these rows again"
        )


def _most_maps() -> int:
    """Return a quarter of the process's limit of file descriptors; each map uses one."""
    try:
        import resource

        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    except ImportError:
        soft = 512
    return max(64, soft // 4) if soft > 0 else 1 << 14
