"""Paired comparison of two methods: significance of the differences, and the sessions that changed most."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from manifests.errors import FashionNTMError, IncompleteError
from manifests.load import load_dataset, recorded_spec
from manifests.schema import Session
from pipeline.analysis.cells import p_text
from pipeline.core.binding import StaleError
from pipeline.core.text_table import markdown
from pipeline.evaluation import significance as stats
from pipeline.evaluation.evaluate import Evaluation
from pipeline.evaluation.files import load_results
from pipeline.jobs.managed_runs import results_of, runs_named, seed_of
from pipeline.jobs.run_rows import Currency, NotCheckedError
from pipeline.training.errors import RunError
from pipeline.training.runs import RunFolder, list_runs

METRICS = ("R@5", "R@8", "mean", "MRR")


class CompareError(FashionNTMError, ValueError):
    """The runs cannot be compared: no common session, or galleries of different sizes."""


@dataclass(frozen=True)
class Method:
    """Evaluations of one method on the same sessions, one per seed (None: deterministic)."""

    name: str
    runs: tuple[str, ...]
    seeds: tuple[int | None, ...]
    evaluations: tuple[Evaluation, ...]

    def ranks(self, sessions: Sequence[str]) -> np.ndarray:
        """Return the ranks of these sessions, int [seeds, S]."""
        places = [{name: n for n, name in enumerate(e.session_ids)} for e in self.evaluations]
        pairs = zip(self.evaluations, places, strict=True)
        return np.stack([e.ranks[[place[name] for name in sessions]] for e, place in pairs])


@dataclass(frozen=True)
class Line:
    """One metric on one subset: a, b, b - a with its interval, and the p values."""

    subset: str
    metric: str
    sessions: int
    a: float
    b: float
    a_low: float
    a_high: float
    b_low: float
    b_high: float
    difference: float
    low: float
    high: float
    p_sessions: float
    p_holm: float
    p_seeds: float | None
    least_p_seeds: float | None


@dataclass(frozen=True)
class Change:
    """A session and its ranks in a and b, as geometric means over seeds."""

    session: str
    category: str
    target: str
    a: float
    b: float
    turns: tuple[tuple[str, str], ...] = ()  # (reference, feedback) of every turn, if the dataset is available


@dataclass(frozen=True)
class Comparison:
    a: Method
    b: Method
    sessions: int
    only_one: int  # sessions that only one method ranked
    lines: tuple[Line, ...]
    nearer: tuple[Change, ...]
    further: tuple[Change, ...]
    counts: tuple[int, int, int]  # sessions ranked better, equally, worse in b
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        a, b = ({"name": m.name, "runs": m.runs, "seeds": m.seeds} for m in (self.a, self.b))
        sides = {"a": a, "b": b, "sessions": self.sessions, "left_out": self.only_one}
        tests, nearer, further = ([asdict(one) for one in part] for part in (self.lines, self.nearer, self.further))
        counts = {"sessions_nearer_same_further": self.counts, "notes": self.notes}
        return {**sides, "tests": tests, "nearer": nearer, "further": further, **counts}


def compare_runs(a: str, b: str, data: Path, out: Path, top: int = 10, view: str = "") -> Comparison:
    """Compare ``b`` with ``a``: each a run id (or its first digits), comma-separated ids, or a memory model's name.

    Raises ManifestError for an unknown run, CompareError for incompatible runs, IncompleteError for a run without an
    evaluation.
    """
    runs = list_runs(out / "runs")
    found = [_evaluated(name, runs_named(name, runs, view), view) for name in (a, b)]
    records = [folders[0].record() for _, folders in found]
    stores = [record["identity"]["store"] for record in records]
    notes = [] if stores[0] == stores[1] else ["The runs read different stores: not the memory models alone differ."]
    datasets = [record["dataset"] for record in records]
    if datasets[0] != datasets[1]:
        raise CompareError(f"runs on {datasets[0]} and on {datasets[1]}: compare runs of one dataset")
    sessions, note = _sessions(records[0].get("spec"), data)
    for (_, folders), record in zip(found, records, strict=True):
        note += _current(folders, record, data, out, view)
    return compare(found[0][0], found[1][0], sessions, top, [*notes, *note])


def compare_list(name: str, evaluation: Evaluation, run: str, data: Path, out: Path) -> Comparison:
    """Compare the evaluation of another system's ranked lists with a run. Raises as ``compare_runs``."""
    method, folders = _evaluated(run, runs_named(run, list_runs(out / "runs")), "")
    record = folders[0].record()
    sessions, notes = _sessions(record.get("spec"), data)
    notes += _current(folders, record, data, out, "")
    return compare(method, Method(name, ("ranked lists",), (None,), (evaluation,)), sessions, notes=notes)


def _evaluated(name: str, folders: Sequence[RunFolder], view: str) -> tuple[Method, list[RunFolder]]:
    evaluations = []
    for run in folders:
        if run.damage:
            raise RunError(run.damage)
        if not (results := results_of(run, view).results).is_file():
            what = f" in view {view}" if view else ""
            raise IncompleteError(f"run {run.id} ({run.model}) is not evaluated{what}: run `evaluate` or `ablate`")
        evaluations.append(load_results(results))
    if len({e.session_ids for e in evaluations}) > 1:
        raise CompareError(f"{name}: its runs were tested on different sessions: name runs of one spec")
    options = folders[0].record()["identity"]["model"]["options"]
    shown = json.dumps(options, ensure_ascii=False) if options else ""
    label = f"{folders[0].model} {shown}".strip()
    ids, seeds = tuple(run.id for run in folders), tuple(seed_of(run) for run in folders)
    return Method(label, ids, seeds, tuple(evaluations)), list(folders)


def _current(folders: Sequence[RunFolder], record: Mapping[str, Any], data: Path, out: Path, view: str) -> list[str]:
    """Return a note if the data is unavailable. Raises StaleError if a run or its evaluation is not of ``data``."""
    currency = Currency(data, out)
    try:
        found = currency.identities(record)
    except NotCheckedError as error:
        return [f"Whether the runs match the current data: {error}."]
    for folder in folders:
        run = found.run_of(folder.record()["identity"])
        name = f"run {folder.id} ({folder.model})"
        if run is None:
            raise StaleError(f"{name} is of other data than {data} holds now: run `{found.spec.command('run')}`")
        files = results_of(folder, view)
        if changed := files.stale(found.evaluation_identity(run, files.view())):
            again = found.spec.command("evaluate", "--model", folder.model)
            raise StaleError(f"the evaluation of {name} is of other data ({'; '.join(changed)}): run `{again}`")
    return []


def _sessions(spec: object, data: Path) -> tuple[tuple[Session, ...], list[str]]:
    """Return the test sessions of the run's recorded spec; none, with a note, if its data is unavailable."""
    try:
        return load_dataset(recorded_spec(spec), data).split("test"), []
    except (FashionNTMError, ValueError):
        return (), [f"The dialogues are not in {data}: give --data to see the feedback texts."]


def compare(
    a: Method, b: Method, sessions: Sequence[Session] = (), top: int = 10, notes: Sequence[str] = ()
) -> Comparison:
    """Compare b with a on their common sessions. ``sessions``: of the dataset, for the texts of the turns.

    Raises CompareError if they have no common sessions or galleries of different sizes.
    """
    first, second = a.evaluations[0], b.evaluations[0]
    sizes = [{name: facts["images"] for name, facts in e.galleries.items()} for e in (first, second)]
    if sizes[0] != sizes[1]:
        raise CompareError(f"galleries of different sizes ({sizes[0]} and {sizes[1]}): ranks cannot be compared")
    both = set(second.session_ids)
    rows = np.array([n for n, name in enumerate(first.session_ids) if name in both], dtype=np.int64)
    common = [first.session_ids[n] for n in rows]
    if not common:
        raise CompareError("no session in common: compare runs of one dataset")
    labels = np.array(first.categories, dtype=object)[rows]
    ranks = a.ranks(common), b.ranks(common)
    lines = _lines(a, b, first, rows, labels, ranks)
    means = [np.exp(np.log(r).mean(axis=0)) for r in ranks]
    by_id = {session.id: session for session in sessions}
    targets = np.array(first.target_ids, dtype=object)[rows]

    def change(n: int) -> Change:
        session = by_id.get(common[n])
        turns = tuple((turn.reference, turn.text) for turn in session.turns) if session else ()
        return Change(common[n], str(labels[n]), str(targets[n]), float(means[0][n]), float(means[1][n]), turns)

    gain = np.log(means[0]) - np.log(means[1])
    order = np.argsort(-gain, kind="stable")
    nearer = tuple(change(n) for n in order[:top] if gain[n] > 0)
    further = tuple(change(n) for n in order[::-1][:top] if gain[n] < 0)
    counts = (int((gain > 0).sum()), int((gain == 0).sum()), int((gain < 0).sum()))
    left_out = len(set(first.session_ids) ^ both)
    return Comparison(a, b, len(common), left_out, lines, nearer, further, counts, tuple(notes))


def _lines(
    a: Method, b: Method, about: Evaluation, rows: np.ndarray, labels: np.ndarray, ranks: tuple[np.ndarray, np.ndarray]
) -> tuple[Line, ...]:
    made: list[Line] = []
    tested: set[bytes] = set()
    fixed = [m.seeds == (None,) for m in (a, b)]
    for subset, members in about.subsets.items():
        inside = members[rows]
        if not inside.any() or inside.tobytes() in tested:  # a subset with the same sessions adds no comparison
            continue
        tested.add(inside.tobytes())
        strata = stats.strata_of(labels[inside].tolist(), about.averaging)
        values = [stats.session_values(r[:, inside], m) for m in METRICS for r in ranks]  # a, b by metric: [seeds, S]
        drawn = stats.bootstrap(np.stack([v.mean(axis=0) for v in values], axis=1), strata)
        for n, metric in enumerate(METRICS):
            of, sides = values[2 * n : 2 * n + 2], (drawn[:, 2 * n], drawn[:, 2 * n + 1])
            by_seed = (np.mean([v[:, m].mean(axis=1) for m in strata], axis=0).tolist() for v in of)
            one, other = (dict(zip(m.seeds, v, strict=True)) for m, v in zip((a, b), by_seed, strict=True))
            test = stats.seed_test(one, other, fixed)  # pairs of equal seeds, or every seed against a deterministic run
            first, second = (float(np.mean([v.mean(axis=0)[m].mean() for m in strata])) for v in of)
            found = stats.difference(second - first, sides[1] - sides[0])
            values_of = (first, second, *stats.interval(sides[0]), *stats.interval(sides[1]), *found)
            over_seeds = (test.p, test.least) if test else (None, None)
            made.append(Line(subset, metric, int(inside.sum()), *values_of, found.p, *over_seeds))
    corrected = stats.holm([line.p_sessions for line in made])
    return tuple(replace(line, p_holm=p) for line, p in zip(made, corrected, strict=True))


def to_text(comparison: Comparison) -> str:
    c = comparison
    out = [f"A  {_label(c.a)}", f"B  {_label(c.b)}", ""]
    header = ("sessions", "metric", "A", "B", "B - A", "95% interval", "p sessions", "Holm", "p seeds")
    rows: list[Sequence[str]] = [header]
    for line in c.lines:
        name = f"{line.subset} ({line.sessions:,})", "Mean" if line.metric == "mean" else line.metric
        gap = f"{line.difference:+z.1f}", f"{line.low:+z.1f} to {line.high:+z.1f}"
        tests = (p_text(p).removeprefix("p = ").removeprefix("p ") for p in (line.p_sessions, line.p_holm))
        over_seeds = "-" if line.p_seeds is None else f"{line.p_seeds:.3f}"
        rows.append((*name, f"{line.a:.1f}", f"{line.b:.1f}", *gap, *tests, over_seeds))
    out += markdown(rows, left=2)
    least = {line.least_p_seeds for line in c.lines if line.least_p_seeds is not None}
    how = f"paired bootstrap, {stats.RESAMPLES:,} resamples of whole sessions; Holm: corrected over these {len(c.lines)} lines."
    out += ["", f"- p sessions: {how}"]
    if least:
        out.append(f"- p seeds: exact paired sign-flip test; this number of seeds gives no p below {max(least):.3f}.")
    nearer, same, further = (f"{count:,}" for count in c.counts)
    out += [f"- B ranks the target nearer to the top in {nearer} sessions, the same in {same}, further in {further}."]
    out += [f"- {c.only_one:,} sessions that only one of them ranked are left out."] if c.only_one else []
    out += [f"- {note}" for note in c.notes]
    for title, changes in (("Most gained in B", c.nearer), ("Most lost in B", c.further)):
        if changes:
            out += ["", f"{title} (rank in A -> rank in B):"]
        for change in changes:
            out.append(f"  {change.session}  rank {change.a:.0f} -> {change.b:.0f}  target {change.target}")
            out += [f"      turn {n}  {reference}: {text}" for n, (reference, text) in enumerate(change.turns, start=1)]
    return "\n".join(out)


def _label(method: Method) -> str:
    seeds = [str(seed) for seed in method.seeds if seed is not None]
    return f"{method.name}{f', seeds {chr(44).join(seeds)}' if seeds else ''}; runs {', '.join(method.runs)}"
