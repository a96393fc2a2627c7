"""Compare two stores: fingerprint fields, rows in only one of them, and rows of one key with different bytes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from cache.reader import Store

ABSENT = "(absent)"
_BLOCK = 4096


@dataclass(frozen=True)
class FieldChange:
    """Changed field, by its dotted name; ``old`` or ``new`` is "(absent)" if the field is missing."""

    field: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.field}: {_shown(self.old)} -> {_shown(self.new)}"


def _shown(value: Any) -> str:
    text = value if value == ABSENT else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 100 else text[:97] + "..."


def field_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[FieldChange]:
    """Return each field that differs, nested ones by dotted name; 1 and true, or null and absent, are different."""
    found: list[FieldChange] = []

    def walk(prefix: str, a: Any, b: Any) -> None:
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            for key in sorted({*a, *b}):
                walk(f"{prefix}.{key}" if prefix else str(key), a.get(key, ABSENT), b.get(key, ABSENT))
        elif json.dumps(a, sort_keys=True, default=str) != json.dumps(b, sort_keys=True, default=str):
            found.append(FieldChange(prefix, a, b))

    walk("", old, new)
    return found


@dataclass(frozen=True)
class RowDifference:
    """Key whose rows differ: largest absolute difference of a value, and cosine similarity."""

    key: str
    images: tuple[str, ...]  # ids bound to the key in the catalog of A; empty for texts and queries
    max_abs: float
    cosine: float


@dataclass(frozen=True)
class TableDiff:
    """Differences of a table. ``largest``: rows that differ most. ``note``: reason that values cannot be compared."""

    table: str
    only_a: int
    only_b: int
    equal: int
    differing: int
    largest: tuple[RowDifference, ...]
    examples_a: tuple[str, ...]  # image ids or keys
    examples_b: tuple[str, ...]
    note: str = ""


@dataclass(frozen=True)
class StoreDiff:
    """Differences of two stores. ``same``: no field or row differs; execution, shards and row order do not count."""

    a: str
    b: str
    fields: tuple[FieldChange, ...]
    tables: tuple[TableDiff, ...]

    @property
    def same(self) -> bool:
        return not self.fields and not any(t.only_a or t.only_b or t.differing or t.note for t in self.tables)

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "same": self.same}

    def text(self) -> str:
        lines = [f"A  {self.a}", f"B  {self.b}", f"fields  {len(self.fields)} differ (A -> B)"]
        lines += [f"  {change}" for change in self.fields]
        for t in self.tables:
            lines.append(
                f"{t.table:6}  {t.equal:,} equal, {t.differing:,} differ, {t.only_a:,} only in A, "
                f"{t.only_b:,} only in B" + (f"; {t.note}" if t.note else "")
            )
            for side, examples in (("A", t.examples_a), ("B", t.examples_b)):
                lines += [f"  only in {side}: {', '.join(examples)}"] if examples else []
            for row in t.largest:
                named = f" ({', '.join(row.images[:3])})" if row.images else ""
                lines.append(f"  {row.key}{named}: max abs difference {row.max_abs:.3g}, cosine {row.cosine:.6f}")
        return "\n".join([*lines, "the stores are the same" if self.same else "the stores differ"])


def diff(a: Store, b: Store, largest: int = 5) -> StoreDiff:
    """Compare by content key, in blocks of rows: memory use does not grow with the size of the features."""
    tables = tuple(_table(a, b, table, largest) for table in dict.fromkeys([*a.tables, *b.tables]))
    about = [{"dataset": s.dataset, "extractor": s.extractor} for s in (a, b)]
    return StoreDiff(str(a.path), str(b.path), (*field_changes(*about), *field_changes(a.fields, b.fields)), tables)


def _table(a: Store, b: Store, table: str, largest: int) -> TableDiff:
    keys_a, keys_b = a.keys(table), b.keys(table)
    at = b.find(table, keys_a)
    only_b = np.flatnonzero(a.find(table, keys_b) < 0)
    only_a, both = np.flatnonzero(at < 0), np.flatnonzero(at >= 0)
    names_a, names_b = (_names(s) if table in ("image", "target") else {} for s in (a, b))
    kinds = [(s.tables[table].dim, s.tables[table].dtype) for s in (a, b) if table in s.tables]
    note, rows, differing = "", [], 0
    if len(kinds) == 2 and kinds[0] != kinds[1]:
        note = "A holds {1} [n, {0}], B {3} [n, {2}]".format(*kinds[0], *kinds[1])
    if len(kinds) == 2 and kinds[0][0] == kinds[1][0]:
        for start in range(0, len(both), _BLOCK):
            part = both[start : start + _BLOCK]
            x, y = a.gather(table, part), b.gather(table, at[part])
            unequal = np.flatnonzero(
                (x.view(np.uint8) != y.view(np.uint8)).any(axis=1) if x.dtype == y.dtype else (x != y).any(axis=1)
            )
            differing += len(unequal)
            worst, cosine = _distances(x[unequal], y[unequal])
            for n in np.argsort(-worst, kind="stable")[:largest]:
                key = keys_a[part[unequal[n]]].tobytes()
                rows.append(RowDifference(key.hex(), names_a.get(key, ()), float(worst[n]), float(cosine[n])))
    elif len(kinds) == 2:
        differing = len(both)
    rows.sort(key=lambda r: -r.max_abs)
    return TableDiff(
        table,
        len(only_a),
        len(only_b),
        len(both) - differing,
        differing,
        tuple(rows[:largest]),
        _examples(keys_a[only_a[:3]], names_a),
        _examples(keys_b[only_b[:3]], names_b),
        note,
    )


def _distances(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return largest absolute difference and cosine of rows [n, D], float64 [n] each; cosine 0 for a zero row."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    norms = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
    cosine = np.divide((x * y).sum(axis=1), norms, out=np.zeros(len(x)), where=norms > 0)
    return np.abs(x - y).max(axis=1, initial=0.0), cosine


def _names(store: Store) -> dict[bytes, tuple[str, ...]]:
    found: dict[bytes, tuple[str, ...]] = {}
    for image, key in store.catalogue().items():
        found[key] = (*found.get(key, ()), image)
    return found


def _examples(keys: np.ndarray, names: Mapping[bytes, tuple[str, ...]]) -> tuple[str, ...]:
    return tuple(names.get(k.tobytes(), (k.tobytes().hex(),))[0] for k in keys)
