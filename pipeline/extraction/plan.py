"""What an extraction would do and why, before it does it: unique work per table, without one forward pass."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cache import Failure, Store, StoreError, StoreNotFoundError, StoreWriter, store_path
from manifests.identity import KEY_BYTES, changed_fields, digest, stack_keys
from manifests.schema import Dataset
from pipeline.core.digests import NAME as DIGESTS
from pipeline.extraction.batches import ShardTask
from pipeline.extraction.extractors.base import Extractor
from pipeline.extraction.probe import Probe
from pipeline.extraction.work import Item, catalogue_of, requests_of

UP_TO_DATE = "up to date: fingerprint matches"


@dataclass(frozen=True, eq=False)
class TablePlan:
    """One table: ``requests`` before and ``unique`` after deduplication = done + failed + todo.

    ``stale``: how many of ``todo`` have a row under another fingerprint.
    """

    table: str
    requests: int
    unique: int
    done: int
    failed: int
    stale: int
    todo: tuple[Item, ...]
    places: np.ndarray  # of the items to do among the unique ones, int64 [todo]
    present: np.ndarray  # which of the unique items have a row, bool [unique]
    unusable: tuple[Failure, ...]  # without content, so without a key: no file, no caption
    outdated: tuple[str, ...]  # items whose failure on record is about a content that they no longer have
    bytes: int
    reason: str

    def as_dict(self) -> dict[str, Any]:
        names = ("requests", "unique", "done", "failed", "stale", "bytes", "reason")
        return {n: getattr(self, n) for n in names} | {"todo": len(self.todo), "unusable": len(self.unusable)}

    def tasks(self, shard_rows: int) -> list[ShardTask]:
        """The work as shards to be: the unique items cut every ``shard_rows``, whatever is done already.

        So a resumed job makes the shards, and the batches, of one that was never stopped. What is left of shards that
        have some rows (an interrupted one, retried failures) is put together, ``shard_rows`` at a time.
        """
        begun = (
            np.add.reduceat(self.present.astype(np.int64), np.arange(0, self.unique, shard_rows)) > 0
            if self.unique
            else []
        )
        whole: dict[int, list[Item]] = {}
        rest: list[Item] = []
        for item, place in zip(self.todo, (self.places // shard_rows).tolist(), strict=True):
            (rest if begun[place] else whole.setdefault(place, [])).append(item)
        left = [rest[n : n + shard_rows] for n in range(0, len(rest), shard_rows)]
        return [ShardTask(self.table, items) for items in [*left, *whole.values()]]


@dataclass(frozen=True)
class Plan:
    """Everything ``extract`` needs, and what ``plan`` prints. ``catalogue``: image id -> content key.

    ``widths``: bytes of a row's features by table.
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

    @property
    def fingerprint(self) -> str:
        return digest(self.fields)

    @property
    def todo(self) -> int:
        return sum(len(t.todo) for t in self.tables.values())

    @property
    def bytes(self) -> int:
        return sum(t.bytes for t in self.tables.values())

    def as_dict(self) -> dict[str, Any]:
        return {
            "dataset": self.dataset,
            "extractor": self.extractor,
            "fingerprint": self.fingerprint,
            "store": str(self.path) if self.path else None,
            "images": len(self.catalogue),
            "todo": self.todo,
            "bytes": self.bytes,
            "hash_seconds": self.seconds,
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
    """Unique work of ``extractor`` on ``dataset``, less what ``store`` (or the writer that holds it) already has.

    ``stores``: the folder of all stores; image digests are remembered there, and written back only if ``remember``.
    ``retry_failed``: plan known failures again. Raises ManifestError when the dataset has nothing this extractor reads,
    and StoreCorruptError when a shard of the store is not whole.
    """
    began = time.perf_counter()
    fields = extractor.semantic()
    path = store.path if store is not None else None
    if stores is not None:
        path = store_path(stores, dataset.name, extractor.name, fields)
    digests = path.parent / DIGESTS if path is not None else None
    sources, unusable = catalogue_of(dataset, extractor, digests, workers, remember)
    catalogue = {image_id: source.key for image_id, source in sources.items()}
    known = store.failures() if store is not None else []
    other, reason = _another(path, fields) if store is None else (None, "")
    tables = {}
    for table in extractor.tables:
        requests, items, bad = requests_of(table, dataset, sources, unusable)
        width = extractor.dim(table) * extractor.dtype.itemsize + KEY_BYTES
        on_record = {f.item: f.key for f in known if f.table == table}
        tables[table] = _table(table, requests, items, bad, store, other, on_record, retry_failed, width, reason)
    widths = {table: extractor.dim(table) * extractor.dtype.itemsize for table in extractor.tables}
    return Plan(dataset.name, extractor.name, fields, tables, catalogue, time.perf_counter() - began, path, widths)


def open_store(stores: Path, dataset: Dataset, extractor: Extractor) -> Store | None:
    """The store of exactly this dataset and extractor, or None when nothing was extracted yet."""
    try:
        return Store.open(store_path(stores, dataset.name, extractor.name, extractor.semantic()))
    except StoreNotFoundError:
        return None


def _table(
    table: str,
    requests: int,
    items: Mapping[bytes, Item],
    bad: Sequence[Failure],
    store: Store | StoreWriter | None,
    other: Store | None,
    on_record: Mapping[str, str | None],
    retry_failed: bool,
    width: int,
    reason: str,
) -> TablePlan:
    present = _present(store, table, list(items))
    missing = [(n, item) for n, (item, there) in enumerate(zip(items.values(), present, strict=True)) if not there]
    failed = set() if retry_failed else set(on_record.values())
    wanted = [(n, item) for n, item in missing if item.key.hex() not in failed]
    todo, places = tuple(item for _, item in wanted), np.array([n for n, _ in wanted], dtype=np.int64)
    stale = _elsewhere(other, table, todo)
    names = ((name, item.key.hex()) for item in items.values() for name in item.names if name in on_record)
    outdated = tuple(name for name, key in names if on_record[name] != key)
    known, done = len(missing) - len(todo), len(items) - len(missing)
    if not reason:
        reason = _why(len(items), done, len(todo))
    if known:
        reason += f"; {known} known failures are left alone (--retry-failed tries them again)"
    if bad:
        reason += f"; {len(bad)} have nothing to read, such as {bad[0].item}: {bad[0].reason}"
    return TablePlan(
        table,
        requests,
        len(items),
        done,
        known,
        stale,
        todo,
        places,
        present,
        tuple(bad),
        outdated,
        len(todo) * width,
        reason,
    )


def _present(store: Store | StoreWriter | None, table: str, keys: list[bytes]) -> np.ndarray:
    """Which keys have a row, bool [n]."""
    if store is None or not keys or (isinstance(store, Store) and table not in store.tables):
        return np.zeros(len(keys), dtype=bool)
    stacked = stack_keys(keys)
    return ~store.missing(table, stacked) if isinstance(store, StoreWriter) else store.find(table, stacked) >= 0


def _elsewhere(other: Store | None, table: str, items: Sequence[Item]) -> int:
    """How many of ``items`` have a row in a store of another fingerprint."""
    try:
        return int(_present(other, table, [item.key for item in items]).sum())
    except StoreError:  # damaged: it is not this job's concern
        return 0


def _why(unique: int, done: int, todo: int) -> str:
    if todo == 0:
        return UP_TO_DATE
    return f"output missing: {done:,} of {unique:,} rows are there" if done else "output missing"


def _another(path: Path | None, fields: dict[str, Any]) -> tuple[Store | None, str]:
    """Why there is no store: none was ever made, or the ones there have another fingerprint (the newest is given)."""
    for other in _siblings(path):
        changed = changed_fields(other.fields, fields)
        if changed:
            more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
            return other, f"stale: {other.path.name} has another fingerprint ({'; '.join(changed[:3])}{more})"
    return None, "no store yet"


def _siblings(path: Path | None) -> Iterator[Store]:
    """Stores of the same dataset and extractor name, the newest first."""
    if path is None or not path.parent.is_dir():
        return
    name = path.name.rsplit("-", 1)[0]
    folders = [p for p in path.parent.glob(f"{name}-*") if len(p.name) == len(path.name) and p != path]
    for folder in sorted(folders, key=lambda p: p.stat().st_mtime, reverse=True):
        try:
            yield Store.open(folder, verify="header")  # only counted: none of its rows is used
        except Exception:  # a damaged neighbour is not this job's concern
            continue
