"""Matching of imported arrays to the rows that a dataset needs, with unknown, missing and conflicting rows."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from manifests.identity import pair_key, text_key
from manifests.schema import Dataset
from pipeline.extraction.arrays import Pair, TableArrays

_SHOWN = 5


class Lookup:
    """Row numbers of a folder's arrays, by table, for a dataset's images and queries; -1 if absent."""

    def __init__(self, tables: dict[str, TableArrays], dataset: Dataset):
        self.tables, self.dataset = tables, dataset
        self.conflicts: list[str] = []
        self._by_turn = self._turns()

    def image(self, table: str, image: str) -> int:
        return self.tables[table].rows_by_name.get(image, -1)

    def pair(self, image: str, text: str) -> int:
        """Return the row of a query by reference and text, else by session and turn, else by exported content key."""
        rows, bound = self.tables["query"].rows_by_name, self.tables["target"].bound
        found = rows.get((image, text), self._by_turn.get((image, text), -1))
        if found < 0 and image in bound:
            found = rows.get(pair_key(bound[image], text_key(text)), -1)
        return found

    def _turns(self) -> dict[Pair, int]:
        """Rows named by session and turn, by (image, text) pair. Different rows for one pair are a conflict: a
        single-turn model gives each pair one row."""
        found: dict[Pair, int] = {}
        if (arrays := self.tables.get("query")) is None:
            return found
        for session in self.dataset.sessions:
            asked = [(turn.reference, turn.text, n) for n, turn in enumerate(session.turns, start=1)]
            for image, text, turn in [*asked, (session.turns[0].reference, session.text, 0)]:
                row = arrays.rows_by_name.get((session.id, turn), -1)
                first = found.setdefault((image, text), row)
                if first < 0:
                    found[image, text] = row
                elif row >= 0 and row != first and not np.array_equal(arrays.features[row], arrays.features[first]):
                    self.conflicts.append(
                        f"{arrays.labels[first]} and {arrays.labels[row]} ask the same, ({image!r}, {text[:60]!r}), and "
                        "their rows differ"
                    )
        return {pair: row for pair, row in found.items() if row >= 0}


@dataclass
class Fit:
    """Result of matching arrays to a dataset. Lists of names: ``unknown`` rows that the dataset does not use, by table;
    ``missing`` rows that it needs; ``conflicts`` between rows of one query."""

    rows: dict[str, int] = field(default_factory=dict)
    unknown: dict[str, list[str]] = field(default_factory=dict)
    missing: dict[str, list[str]] = field(default_factory=dict)
    conflicts: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return {"rows": self.rows, "unknown": self.unknown, "missing": self.missing, "conflicts": self.conflicts}

    def lines(self) -> list[str]:
        lines = []
        kinds = (("missing: the dataset asks for", self.missing), ("unknown: the dataset has no", self.unknown))
        for words, found in kinds:
            for table, names in found.items():
                if names:
                    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
                    lines.append(f"table '{table}', {len(names):,} rows {words} {', '.join(names[:_SHOWN])}{more}")
        return [*lines, *self.conflicts[:_SHOWN]]


def fit(tables: dict[str, TableArrays], dataset: Dataset, concatenated: bool) -> Fit:
    """Match the arrays to all rows that stage 2 needs. ``concatenated``: including ST + cat's queries."""
    lookup = Lookup(tables, dataset)
    done = Fit({name: t.rows for name, t in tables.items()}, conflicts=lookup.conflicts)
    for table, arrays in tables.items():
        if table in ("image", "target"):
            asked = {repr(image): lookup.image(table, image) for image in dataset.images}
        elif table == "text":
            asked = {repr(text): arrays.text_row(text) for _, text in dataset.queries()}
        else:
            asked = {repr(pair): lookup.pair(*pair) for pair in dataset.queries()}
            if not concatenated:
                turns = {repr((t.reference, t.text)) for s in dataset.sessions for t in s.turns}
                asked = {name: row for name, row in asked.items() if name in turns or row >= 0}
        done.missing[table] = [name for name, row in asked.items() if row < 0]
        used = np.zeros(arrays.rows, dtype=bool)
        used[[row for row in asked.values() if row >= 0]] = True
        if table == "query":  # rows of turns with equal queries are all used
            known = {session.id for session in dataset.sessions}
            for name, row in arrays.rows_by_name.items():
                used[row] |= isinstance(name, tuple) and isinstance(name[1], int) and name[0] in known
        done.unknown[table] = [arrays.labels[n] for n in np.flatnonzero(~used)]
    return done
