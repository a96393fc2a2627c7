"""Gather the contents of a report as plain values for the page template."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from manifests.errors import IncompleteError, ManifestError, Problem, nearest
from manifests.table_spec import ResultsTable, load_table_spec, table_names
from pipeline.analysis.cells import Table
from pipeline.analysis.own_tables import own_table
from pipeline.analysis.tables import TableRequest, fill
from pipeline.jobs.experiment import Experiment
from pipeline.views.report.curves import diagnostics, learning_curves, memory_figure
from pipeline.views.report.order import interactive_order, logged_order
from pipeline.views.report.retention import exact_retention, known_requests, scored_retention, telling_session
from pipeline.views.report.strips import Strip, changes, choose, strips_of
from pipeline.views.retrieval.pictures import Pictures
from pipeline.views.retrieval.queries import Queries
from pipeline.views.retrieval.testbed import TestBed
from pipeline.views.retrieval.trained import Trained, first_seeds, trained_runs

CHANGED = 6  # number of sessions with the largest wins, and with the largest losses


@dataclass(frozen=True)
class Options:
    """Options of a report. ``model`` is shown session by session and compared with ``against``."""

    model: str | None = None
    against: str | None = None
    seeds: tuple[int, ...] | None = None
    sessions: int = 150
    k: int = 5
    megabytes: float = 20.0
    thumbnail: int = 112


@dataclass(frozen=True)
class Pair:
    """One session's strips under two models."""

    one: Strip
    other: Strip


def gather(experiment: Experiment, data: Path, options: Options) -> dict[str, Any]:
    """Return the values of the page. A section without data has a sentence with the reason and the command to run.

    Raises IncompleteError when no run is trained, ManifestError for an unknown model.
    """
    spec, dataset, workspace, log = experiment.spec, experiment.dataset, experiment.workspace, experiment.log
    found, missing = trained_runs(experiment, seeds=options.seeds)
    if not found:
        raise IncompleteError(f"no run of spec '{spec.name}' is trained: run `{spec.command('train')}`")
    bed = TestBed(experiment)
    models = list(first_seeds(found).values())
    log(f"{len(models)} models over {len(bed.sessions):,} test sessions")
    ranks = {m.label: bed.ranks(bed.finals(m)) for m in models}
    one = _named(models, options.model, "--model") or models[-1]
    other = _named(models, options.against, "--against")
    if other is None:  # the one with the highest mean of R@5 and R@8 over all test sessions
        means = {m.label: float((ranks[m.label] <= 5).mean() + (ranks[m.label] <= 8).mean()) for m in models}
        other = max((m for m in models if m is not one), key=lambda m: means[m.label], default=None)
    log("retention and turn order ...")
    requests = known_requests(spec)
    backbone = workspace.backbone(spec, dataset)
    retention = [scored_retention(bed, models, backbone, options.k)]
    if requests is not None:
        retention.insert(0, exact_retention(bed, models, requests, options.k))
    orders = [
        logged_order(bed, models, options.k),
        interactive_order(bed, models, Queries(spec, dataset, workspace), options.k),
    ]
    log("sessions ...")
    wins, losses = changes(bed, one, other, CHANGED) if other else ([], [])
    changed = [*wins, *losses]
    chosen = choose(bed, changed, min(options.sessions, len(bed.sessions)))
    strips = dict(zip(chosen, strips_of(bed, one, chosen, options.k), strict=True))
    against = dict(zip(changed, strips_of(bed, other, changed, options.k), strict=True)) if other else {}
    last = next((m for m in models if m.name == "last"), None)
    kept = telling_session(bed, one, last, requests, options.k) if last and requests and one.by_turn else None
    pair = [strips_of(bed, m, [kept], options.k)[0] for m in (one, last) if m and kept is not None]
    example = orders[1].examples.get(one.label)
    notes = ["Not trained yet: " + command for command in missing]
    if bed.dropped:
        why = "a feature or their target is missing from the store"
        notes.append(f"{bed.dropped:,} test sessions are left out: {why}.")
    values: dict[str, Any] = {"spec": spec, "dataset": dataset, "experiment": experiment, "options": options}
    values |= {"models": models, "one": one, "other": other, "notes": notes, "tables": report_tables(experiment, data)}
    values |= {"curves": learning_curves(found), "diagnostics": diagnostics(found, spec)}
    values |= {"memory": memory_figure(experiment), "retention": retention, "orders": orders}
    for name, numbers in (("wins", wins), ("losses", losses)):
        values[name] = [Pair(strips[n], against[n]) for n in numbers if n in strips]
    values["kept"] = (last, Pair(*pair)) if pair else None
    values["turned"] = None if example is None else (bed.sessions[example.session], example)
    values["strips"] = sorted(strips.values(), key=lambda s: (s.category, s.session))
    quartiles = {label: np.percentile(r, (25, 50, 75, 90)) for label, r in ranks.items()}
    values["quartiles"] = {label: [f"{q:.0f}" for q in found] for label, found in quartiles.items()}
    return values | {"total": len(bed.sessions), "pictures": Pictures(dataset)}


def report_tables(experiment: Experiment, data: Path) -> list[Table]:
    """Return every shipped results table with this run spec; if there is none, a table of the spec's own models."""
    spec, out = experiment.spec, experiment.workspace.out
    shipped = {name: load_table_spec(name) for name in table_names()}
    mine = {name: t for name, t in shipped.items() if isinstance(t, ResultsTable) and t.run == spec.name}
    tables = mine or {spec.name: own_table(spec, experiment.dataset, experiment.subsets)}
    given = shlex.split(spec.asked)[0]
    return [fill(table, spec, TableRequest(name, data, out, given), experiment) for name, table in tables.items()]


def _named(models: Sequence[Trained], name: str | None, option: str) -> Trained | None:
    if name is None:
        return None
    chosen = next((m for m in models if name in (m.name, m.label, m.run)), None)
    if chosen is None:
        hint = nearest(name, [m.name for m in models])
        raise ManifestError([Problem(option, name, "no trained model of this name", hint)])
    return chosen
