"""Plan of an extraction: the missing rows of each table and the reason, without running the model."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cache import Failure, Store, StoreError, StoreNotFoundError, StoreWriter, store_path
from manifests.identity import KEY_BYTES, changed_fields, digest, stack_keys
from manifests.schema import Dataset
from pipeline.core.image_files import DIGESTS, is_transient
from pipeline.extraction.extractors.base import Extractor
from pipeline.extraction.probe import Probe
from pipeline.extraction.work import Item, ShardTask, bound_keys, catalogue_of, requests_of

if TYPE_CHECKING:
    from pipeline.extraction.cost import MemoryBound

UP_TO_DATE = "up to date: fingerprint matches"


@dataclass(frozen=True, eq=False)
class TablePlan:
    """Plan of one table: ``requests`` before deduplication, ``unique`` after it (= done + failed + todo).

    ``stale``: number of items in ``todo`` that have a row under another fingerprint.
    """

    table: str
    requests: int
    unique: int
    done: int
    failed: int
    stale: int
    todo: tuple[Item, ...]
    places: np.ndarray  # positions of the ``todo`` items among the unique items, int64 [todo]
    present: np.ndarray  # unique items that have a row, bool [unique]
    unusable: tuple[Failure, ...]  # items without content (no file, no caption) and so without a key
    outdated: tuple[str, ...]  # items whose recorded failure is for content that has changed since
    bytes: int
    reason: str

    def as_dict(self) -> dict[str, Any]:
        names = ("requests", "unique", "done", "failed", "stale", "bytes", "reason")
        return {n: getattr(self, n) for n in names} | {"todo": len(self.todo), "unusable": len(self.unusable)}

    def tasks(self, shard_rows: int) -> list[ShardTask]:
        """Split the unique items into shards of ``shard_rows``, regardless of existing rows.

        A resumed job therefore makes the same shards and batches as an uninterrupted one. The remaining items of
        partly finished shards (after an interrupt, or retried failures) are merged into shards of ``shard_rows``.
        """
        begun: Sequence[bool] = ()
        if self.unique:
            counts = np.add.reduceat(self.present.astype(np.int64), np.arange(0, self.unique, shard_rows))
            begun = (counts > 0).tolist()
        whole: dict[int, list[Item]] = {}
        rest: list[Item] = []
        for item, place in zip(self.todo, (self.places // shard_rows).tolist(), strict=True):
            (rest if begun[place] else whole.setdefault(place, [])).append(item)
        left = [rest[n : n + shard_rows] for n in range(0, len(rest), shard_rows)]
        return [ShardTask(self.table, items) for items in [*left, *whole.values()]]


@dataclass(frozen=True)
class Plan:
    """Plan of all tables, printed by ``plan`` and run by ``extract``. ``catalogue``: image id -> content key.

    ``widths``: feature bytes per row, by table.
    """

    dataset: str
    extractor: str
    fields: dict[str, Any]
    tables: dict[str, TablePlan]
    catalogue: dict[str, bytes]
    seconds: float = 0.0
    path: Path | None = None
    widths: Mapping[str, int] = field(default_factory=dict)
    probe: Probe | None = None
    memory: MemoryBound | None = None

    @property
    def fingerprint(self) -> str:
        return digest(self.fields)

    @property
    def todo(self) -> int:
        return sum(len(t.todo) for t in self.tables.values())

    @property
    def images(self) -> int:
        """Number of image files to read."""
        return sum(len(t.todo) for t in self.tables.values() if t.todo and t.todo[0].file is not None)

    @property
    def bytes(self) -> int:
        return sum(t.bytes for t in self.tables.values())

    def as_dict(self) -> dict[str, Any]:
        return {
            **{name: getattr(self, name) for name in ("dataset", "extractor", "fingerprint", "todo", "bytes")},
            **{"store": self.path and str(self.path), "images": len(self.catalogue), "hash_seconds": self.seconds},
            "memory": self.memory.as_dict() if self.memory is not None else None,
            "tables": {name: table.as_dict() for name, table in self.tables.items()},
            "probe": self.probe.as_dict(self) if self.probe is not None else None,
        }

    def text(self) -> str:
        head = f"store  {self.path or 'none yet'}  (fingerprint {self.fingerprint[:12]})"
        lines = [f"{'table':8}{'unique':>10}{'done':>10}{'failed':>8}{'to do':>10}{'stale':>10}{'GB':>10}  why"]
        for t in self.tables.values():
            counts = (t.unique, t.done, t.failed + len(t.unusable), len(t.todo), t.stale)
            row = "{:8}{:>10,}{:>10,}{:>8,}{:>10,}{:>10,}".format(t.table, *counts)
            lines.append(f"{row}{t.bytes / 1e9:>10.4f}  {t.reason}")
        if self.memory is not None and self.todo:
            lines.append(self.memory.text())
        if self.probe is not None:
            lines.append(self.probe.text(self))
        return "\n".join([head, *lines])


def plan_extraction(
    dataset: Dataset,
    extractor: Extractor,
    store: Store | StoreWriter | None,
    *,
    stores: Path | None = None,
    workers: int = 2,
    retry_failed: bool = False,
    remember: bool = False,
) -> Plan:
    """Return the unique items of ``dataset`` that have no row in ``store`` (a Store or its writer).

    ``stores``: the folder of all stores; its cache of image digests is updated only if ``remember``. ``retry_failed``:
    include known failures; those of I/O are always included. Raises ManifestError when the dataset has nothing that
    ``extractor`` reads, and StoreCorruptError when a shard of the store is incomplete.
    """
    began = time.perf_counter()
    fields = extractor.semantic()
    path = store.path if store is not None else None
    if stores is not None:
        path = store_path(stores, dataset.name, extractor.name, fields)
    digests = path.parent / DIGESTS if path is not None else None
    sources, unusable = catalogue_of(dataset, extractor, digests, workers, remember)
    known = store.failures() if store is not None else []
    other, reason = _another(path, fields) if store is None else (None, "")
    widths = {table: extractor.dim(table) * extractor.dtype.itemsize for table in extractor.tables}

    def planned(table: str) -> TablePlan:
        requests, items, bad = requests_of(table, dataset, sources, unusable)
        present = _present(store, table, list(items))
        missing = [(n, item) for n, (item, there) in enumerate(zip(items.values(), present, strict=True)) if not there]
        on_record = {f.item: f for f in known if f.table == table}
        failed = {f.key for f in on_record.values() if not retry_failed and not is_transient(f.stage, f.reason)}
        wanted = [(n, item) for n, item in missing if item.key.hex() not in failed]
        todo, places = tuple(item for _, item in wanted), np.array([n for n, _ in wanted], dtype=np.int64)
        stale = 0
        with suppress(StoreError):  # a damaged store of another fingerprint does not matter here
            stale = int(_present(other, table, [item.key for item in todo]).sum())
        names = ((name, item.key.hex()) for item in items.values() for name in item.names if name in on_record)
        outdated = tuple(name for name, key in names if on_record[name].key != key)
        counts = (requests, len(items), len(items) - len(missing), len(missing) - len(todo), stale)
        size, why = len(todo) * (widths[table] + KEY_BYTES), _reason(*counts[1:4], bad, reason)
        return TablePlan(table, *counts, todo, places, present, tuple(bad), outdated, size, why)

    tables, catalogue = {table: planned(table) for table in extractor.tables}, bound_keys(dataset, sources)
    return Plan(dataset.name, extractor.name, fields, tables, catalogue, time.perf_counter() - began, path, widths)


def open_store(stores: Path, dataset: Dataset, extractor: Extractor) -> Store | None:
    """Return the store of this dataset and extractor, or None if it does not exist."""
    try:
        return Store.open(store_path(stores, dataset.name, extractor.name, extractor.semantic()))
    except StoreNotFoundError:
        return None


def _reason(unique: int, done: int, known: int, bad: Sequence[Failure], reason: str) -> str:
    """Return why rows of a table are missing, or that none is. ``reason``: of a missing store; ``known``: failures."""
    if not unique and not bad:
        reason = "no row is requested"
    elif not reason:
        reason = f"output missing: {done:,} of {unique:,} rows are there" if done else "output missing"
        reason = reason if done + known < unique else UP_TO_DATE
    if known:
        reason += f"; {known} known failures are left alone (--retry-failed tries them again)"
    if bad:
        reason += f"; {len(bad)} have nothing to read, such as {bad[0].item}: {bad[0].reason}"
    return reason


def _present(store: Store | StoreWriter | None, table: str, keys: list[bytes]) -> np.ndarray:
    """Return whether each key has a row, bool [n]."""
    if store is None or not keys or (isinstance(store, Store) and table not in store.tables):
        return np.zeros(len(keys), dtype=bool)
    stacked = stack_keys(keys)
    return ~store.missing(table, stacked) if isinstance(store, StoreWriter) else store.find(table, stacked) >= 0


def _another(path: Path | None, fields: dict[str, Any]) -> tuple[Store | None, str]:
    """Return the newest store of another fingerprint (or None), and the reason why the one at ``path`` is missing."""
    name = path.name.rsplit("-", 1)[0] if path is not None else ""
    folders = [] if path is None else [p for p in path.parent.glob(f"{name}-*") if len(p.name) == len(path.name)]
    for folder in sorted(folders, key=lambda p: p.stat().st_mtime, reverse=True):
        try:
            other = Store.open(folder, verify="header")  # rows are counted, not read
        except Exception:  # a damaged store of another fingerprint does not matter here
            continue
        if changed := changed_fields(other.fields, fields):
            more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
            return other, f"stale: {other.path.name} has another fingerprint ({'; '.join(changed[:3])}{more})"
    return None, "no store yet"
