"""Explain whether a spec would use a store: fields, execution, rows."""

from __future__ import annotations

import inspect
import socket
from dataclasses import asdict, dataclass
from typing import Any

from cache import Store
from cache.diff import FieldChange, field_changes
from cache.manifest import versions
from manifests.identity import stack_keys
from pipeline.extraction.run import extract
from pipeline.extraction.tolerance import recorded
from pipeline.stores.wanted import ExpectedStore, StoreRequest

_SHOWN = 3


@dataclass(frozen=True)
class RowChanges:
    """Differences of one table from the dataset: rows to compute (``changed``: of changed images) and rows to drop."""

    table: str
    present: int
    new: int
    changed: int
    removed: int
    examples: tuple[str, ...]  # names of new and changed items

    def text(self) -> str:
        more = ", ..." if self.new + self.changed > len(self.examples) else ""
        named = f"  ({', '.join(self.examples)}{more})" if self.examples else ""
        counts = f"{self.present:,} there, {self.new:,} new, {self.changed:,} changed"
        return f"  {self.table:6} {counts}, {self.removed:,} that the dataset no longer references{named}"


@dataclass(frozen=True)
class Explanation:
    """``semantic``: fields of the store's key, stored -> requested. ``execution``: recorded fields outside the key."""

    store: str
    spec: str
    wanted: str
    semantic: tuple[FieldChange, ...]
    execution: tuple[FieldChange, ...]
    rows: tuple[RowChanges, ...]

    @property
    def stale(self) -> bool:
        return bool(self.semantic)

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "stale": self.stale}

    def text(self) -> str:
        lines = [f"store  {self.store}", f"spec   {self.spec}, whose store is {self.wanted}"]
        if self.stale:
            lines.append(f"STALE: {len(self.semantic)} fields of the fingerprint differ (stored -> asked)")
            lines += [f"  {change}" for change in self.semantic]
        else:
            lines.append("the fingerprint is the spec's: every field that can change a feature is the same")
        lines.append(f"execution fields, which never key a store: {len(self.execution) or 'none'} differ")
        lines += [f"  {change}" for change in self.execution]
        lines.append("rows, by content, against the dataset")
        return "\n".join([*lines, *(row.text() for row in self.rows)])


def explain(store: Store, request: StoreRequest) -> Explanation:
    """Compare ``store`` with the store of the same kind (extractor's or composed) that the spec now requests."""
    wanted = request.for_store(store)
    old = {"dataset": store.dataset, "extractor": store.extractor}
    new = {"dataset": request.dataset.name, "extractor": wanted.extractor}
    semantic = (*field_changes(old, new), *field_changes(store.fields, wanted.fields))
    rows = tuple(_rows(store, wanted, table) for table in dict.fromkeys([*wanted.tables, *store.tables]))
    paths = (str(store.path), request.spec.asked, str(wanted.path))
    return Explanation(*paths, semantic, _execution(store, request), rows)


def _rows(store: Store, wanted: ExpectedStore, table: str) -> RowChanges:
    before = store.catalogue()
    other = {key for image, key in wanted.catalogue.items() if before.get(image, key) != key}
    items = list(wanted.tables.get(table, {}).values())
    present = (store.find(table, stack_keys(i.key for i in items)) >= 0).tolist() if items else []
    missing = [item for item, there in zip(items, present, strict=True) if not there]
    changed = [item for item in missing if item.image in other]
    there = len(items) - len(missing)
    rows = store.tables[table].rows if table in store.tables else 0
    names = tuple(item.names[0][:60] for item in (changed or missing)[:_SHOWN])
    return RowChanges(table, there, len(missing) - len(changed), len(changed), rows - there, names)


def _execution(store: Store, request: StoreRequest) -> tuple[FieldChange, ...]:
    """Return the recorded fields of the store's last writer that would differ now."""
    if not store.execution:
        return ()
    last = store.execution[-1]
    now = recorded(request.extractor, request.dataset)
    if "composer" in store.fields:
        now = {"torch": now["torch"], "backbone": request.backbone.path.name.rpartition("-")[2]}
    else:
        defaults = inspect.signature(extract).parameters
        now |= {name: defaults[name].default for name in ("batch_size", "shard_rows", "workers")}
    settings = {k: v for k, v in last.get("settings", {}).items() if k in now}
    if isinstance(settings.get("backbone"), str):
        settings["backbone"] = settings["backbone"][:12]
    old = {**settings, "host": last.get("host"), "versions": last.get("versions", {})}
    new = {**{k: now[k] for k in settings}, "host": socket.gethostname(), "versions": versions()}
    return tuple(field_changes(old, new))
