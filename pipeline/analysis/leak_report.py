"""``leaks``: overlaps of a spec's test sessions with its train sessions, near-duplicate images, their share in each table."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cache import Store
from manifests.errors import IncompleteError
from manifests.identity import stack_keys
from manifests.leaks import OVERLAPS, Scope, in_subset, overlaps, pair_exposure
from manifests.load import load_spec
from manifests.schema import Dataset, RunSpec, Session
from manifests.table_spec import ResultsTable, load_table_spec, table_names
from pipeline.core.text_table import aligned
from pipeline.core.workspace import Workspace
from pipeline.evaluation.ranking import unit_rows
from pipeline.training.errors import FeatureError

_HELD = 1 << 24  # scores in memory at once: 64 MiB of float32


def near_pairs(
    queries: np.ndarray, candidates: np.ndarray, threshold: float, held: int = _HELD
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return all pairs with cosine >= ``threshold``: (query rows, candidate rows, cosines), each [n], by query row.

    queries: [Q, D], candidates: [G, D], of any norm; a zero row has no near pairs. held: scores in memory at once.
    """
    if not (np.isfinite(queries).all() and np.isfinite(candidates).all()):
        raise FeatureError("features with NaN or infinite values: verify the store and extract these rows again")
    units = unit_rows(queries), unit_rows(candidates)
    found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    step = max(1, held // max(1, len(candidates)))
    for start in range(0, len(queries), step):
        scores = units[0][start : start + step] @ units[1].T
        rows, columns = np.nonzero(scores >= threshold - 1e-6)  # a unit vector's product with itself may round below 1
        found.append((rows + start, columns, scores[rows, columns]))
    if not found:
        return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32)
    first, second, third = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return first, second, third


def train_twins(dataset: Dataset, features: dict[str, np.ndarray], threshold: float) -> dict[str, dict[str, float]]:
    """Return test image -> {near-duplicate train image of another id: cosine}, among images with features [D]."""
    test, train = ([i for i in pair_images(dataset.split(part)) if i in features] for part in ("test", "train"))
    twins: dict[str, dict[str, float]] = defaultdict(dict)
    if train and test:
        first, second = (np.stack([features[i] for i in names]) for names in (test, train))
        for row, column, cosine in zip(*near_pairs(first, second, threshold), strict=True):
            if test[row] != train[column]:
                twins[test[row]][train[column]] = float(min(cosine, 1.0))
    return dict(twins)


def near_overlaps(dataset: Dataset, twins: dict[str, dict[str, float]]) -> dict[str, frozenset[str]]:
    """Return test session -> those of "near target" and "near last pair" that training has; exact ones are near."""
    pairs = {pair for session in dataset.split("train") for pair in session.pairs}
    known = {image for pair in pairs for image in pair}
    by_reference: dict[str, set[str]] = defaultdict(set)
    for reference, target in pairs:
        by_reference[reference].add(target)
    found = {}
    for session in dataset.split("test"):
        reference, target = session.pairs[-1]
        targets = {target, *twins.get(target, ())}
        answered = any(by_reference.get(r, set()) & targets for r in (reference, *twins.get(reference, ())))
        has = {"near target": target in known or target in twins, "near last pair": answered}
        found[session.id] = frozenset(name for name, yes in has.items() if yes)
    return found


def pair_images(sessions: Sequence[Session]) -> dict[str, None]:
    """Return the images of the sessions' pairs, in order."""
    return dict.fromkeys(image for session in sessions for pair in session.pairs for image in pair)


CURVE = (0.9, 0.95, 0.98, 0.99, 0.999, 1.0)
EXAMPLES = 5
NEAR = ("near last pair", "near target")
# clean split -> overlaps that it rules out
PROMISED = {"clean-test": ("any pair",), "clean-train": ("any pair",), "clean-target": ("any pair", "target image")}


@dataclass(frozen=True)
class TableLeak:
    """Share of a table's sessions that a model may have memorized."""

    table: str
    title: str
    sessions: int
    last_pair: int
    any_pair: int
    near_last_pair: int | None
    separates: bool  # the table has blocks without these sessions


@dataclass(frozen=True)
class LeakReport:
    """``counts``: category or "all" -> overlap -> number of test sessions with it; ``n``: all test sessions.

    ``curve``: cosine -> test images with a train image of another id at least as similar; None without a store.
    """

    dataset: str
    scope: str
    counts: dict[str, dict[str, int]]
    images: dict[str, int]
    tables: tuple[TableLeak, ...]
    threshold: float | None = None
    curve: dict[float, int] | None = None
    examples: tuple[tuple[str, str, float], ...] = ()
    features: str = ""
    contaminated_on: tuple[str, ...] = ()
    note: str = ""
    protocol: str = ""  # clean split of the dataset

    def as_dict(self) -> dict[str, Any]:
        curve = None if self.curve is None else {str(k): v for k, v in self.curve.items()}
        return {**vars(self), "curve": curve, "tables": [vars(t) for t in self.tables]}

    def text(self) -> str:
        names = [name for name in (*OVERLAPS, *NEAR) if any(name in row for row in self.counts.values())]
        head = ["test sessions", "n", *names]
        where = "its own category" if self.scope == "category" else "the whole dataset"
        split = f", clean split {self.protocol}" if self.protocol else ""
        out = [f"{self.dataset}{split}: what test sessions share with train sessions of {where}", ""]
        rows = [[c, f"{r['n']:,}", *(_share(r[name], r["n"]) for name in names)] for c, r in self.counts.items()]
        pair = "last pair: (reference, target) of the last turn, the answer itself; last query: (reference, feedback);"
        out += [*aligned([head, *rows]), "", pair, "captions: feedback texts, case ignored."]
        if self.protocol:
            found = {name: self.counts["all"][name] for name in PROMISED[self.protocol]}
            shown = ", ".join(f"{name} {n:,}" for name, n in found.items() if n)
            out += ["", f"NOT CLEAN: {shown}" if shown else f"clean: no test session shares {' or '.join(found)}"]
        shared = f"{self.images['shared']:,} of {self.images['test']:,} images of test sessions are in train sessions"
        out += ["", f"images: {shared}"]
        if self.curve is not None:
            steps = ", ".join(f"{n:,} at cosine >= {t:g}" for t, n in self.curve.items())
            out += [f"near-duplicates (a train image of another id): of {self.images['test']:,} test images {steps}"]
            out += [f"'near' columns use cosine >= {self.threshold:g} on {self.features}; exact overlaps count as near"]
            out += [f"    {a} ~ {b}  {cosine:.4f}" for a, b, cosine in self.examples]
        if self.note:
            out += [self.note]
        if self.dataset in self.contaminated_on:
            out += [f"extractor: CONTAMINATED, it was trained on pairs of {self.dataset}"]
        if self.tables:
            head = ["tables", "sessions", "last pair seen", "any pair seen", "near last pair", "clean blocks"]
            rows = []
            for t in self.tables:
                shares = [_share(n, t.sessions) for n in (t.last_pair, t.any_pair)]
                twins = "-" if t.near_last_pair is None else _share(t.near_last_pair, t.sessions)
                rows.append([t.table, f"{t.sessions:,}", *shares, twins, "yes" if t.separates else "no"])
            out += ["", *aligned([head, *rows])]
        return "\n".join(out)


def leak_report(
    spec: RunSpec, dataset: Dataset, workspace: Workspace, scope: Scope = "category", threshold: float = 0.98
) -> LeakReport:
    """Count overlaps and, with a store, near-duplicate images. Raises IncompleteError if there are no test sessions."""
    if not (test := dataset.split("test")):
        why = "there is nothing that could leak into them"
        raise IncompleteError(f"dataset '{dataset.name}' has no test sessions: {why}")
    found: dict[str, set[str]] = {name: set(has) for name, has in overlaps(dataset, scope).items()}
    near: dict[str, Any] = {}
    try:
        store = workspace.store(spec, dataset)
        near["contaminated_on"] = workspace.extracted(spec).contaminated_on
    except IncompleteError as error:
        near["note"] = f"near-duplicates are not searched: {error}"
    else:
        vectors = _features(store, dataset)
        twins = train_twins(dataset, vectors, threshold)
        for name, has in near_overlaps(dataset, twins).items():
            found[name] |= has
        nearest = sorted(((a, b, c) for a, close in twins.items() for b, c in close.items()), key=lambda t: (-t[2], t))
        near |= {"threshold": threshold, "curve": _curve(dataset, vectors), "examples": tuple(nearest[:EXAMPLES])}
        near["features"] = f"f_tar of {store.path.name}"
    names = [*OVERLAPS, *(NEAR if "curve" in near else ())]
    parts = {c: [s for s in test if s.category == c] for c in dict.fromkeys(s.category for s in test)}
    parts = (parts if len(parts) > 1 else {}) | {"all": list(test)}
    counts = {
        part: {"n": len(mine), **{name: sum(name in found[s.id] for s in mine) for name in names}}
        for part, mine in parts.items()
    }
    train_images, test_images = pair_images(dataset.split("train")), pair_images(test)
    images = {"test": len(test_images), "shared": len(test_images.keys() & train_images)}
    tables = tables_touched(dataset, found, scope, "curve" in near)
    return LeakReport(dataset.name, scope, counts, images, tables, **near, protocol=dataset.protocol)


def tables_touched(
    dataset: Dataset, found: Mapping[str, set[str]], scope: Scope = "category", near: bool = False
) -> tuple[TableLeak, ...]:
    """Return the shipped tables of this dataset with their numbers of sessions with a seen pair."""
    exposure, touched = pair_exposure(dataset, scope), []
    for name in table_names():
        table = load_table_spec(name)
        if not isinstance(table, ResultsTable) or load_spec(table.run).dataset.name != dataset.name:
            continue
        ids = [s.id for s in dataset.split("test") if table.turns in (None, len(s.turns))]
        last, some = (sum(not in_subset(exposure[i], p) for i in ids) for p in ("last pair unseen", "no pair seen"))
        twins = sum("near last pair" in found[i] for i in ids) if near else None
        touched.append(TableLeak(name, table.title, len(ids), last, some, twins, len(table.blocks) > 1))
    return tuple(touched)


def _features(store: Store, dataset: Dataset) -> dict[str, np.ndarray]:
    """Return image id -> f_tar for the sessions' images that have one."""
    bound = store.catalogue()
    wanted = [i for i in pair_images(dataset.sessions) if i in bound]
    rows = store.find("target", stack_keys(bound[i] for i in wanted))
    kept = [i for i, row in zip(wanted, rows, strict=True) if row >= 0]
    values = store.gather("target", rows[rows >= 0]).astype(np.float32)
    return dict(zip(kept, values, strict=True))


def _curve(dataset: Dataset, vectors: Mapping[str, np.ndarray]) -> dict[float, int]:
    """Return cosine -> number of test images with a train image of another id at least as similar."""
    sides = [[i for i in pair_images(dataset.split(part)) if i in vectors] for part in ("test", "train")]
    if not all(sides):
        return dict.fromkeys(CURVE, 0)
    first, second = (np.stack([vectors[i] for i in side]) for side in sides)
    rows, columns, cosines = near_pairs(first, second, min(CURVE))
    other = np.array(sides[0], dtype=object)[rows] != np.array(sides[1], dtype=object)[columns]
    best = np.zeros(len(sides[0]))
    np.maximum.at(best, rows[other], cosines[other])
    return {t: int((best >= t - 1e-6).sum()) for t in CURVE}


def _share(count: int, n: int) -> str:
    return f"{count:,} ({100 * count / n:.0f}%)" if n else "0"
