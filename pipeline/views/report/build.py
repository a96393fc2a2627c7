"""Gather the contents of a report as plain values for the page template."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from manifests.errors import IncompleteError, ManifestError, Problem, nearest
from manifests.schema import Dataset, RunSpec
from pipeline.core.workspace import Workspace
from pipeline.jobs.experiment import Experiment
from pipeline.views.report.curves import diagnostics, learning_curves, memory_figure
from pipeline.views.report.order import interactive_order, logged_order
from pipeline.views.report.requests import known_requests
from pipeline.views.report.retention import exact_retention, scored_retention, telling_session
from pipeline.views.report.strips import Strip, changes, choose, strips_of
from pipeline.views.report.tables import report_tables
from pipeline.views.retrieval.pictures import Pictures
from pipeline.views.retrieval.queries import Queries
from pipeline.views.retrieval.testbed import TestBed
from pipeline.views.retrieval.trained import Trained, trained_runs

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


def gather(
    spec: RunSpec,
    dataset: Dataset,
    workspace: Workspace,
    data: Path,
    options: Options,
    device: str = "auto",
    log: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Return the values of the page. A section without data has a sentence with the reason and the command to run.

    Raises IncompleteError when no run is trained, ManifestError for an unknown model.
    """
    experiment = Experiment(spec, dataset, workspace, device, log)
    found, missing = trained_runs(experiment, seeds=options.seeds)
    if not found:
        raise IncompleteError(f"no run of spec '{spec.name}' is trained: run `{spec.command('train')}`")
    bed = TestBed(experiment)
    models = _first_seeds(found)
    log(f"{len(models)} models over {len(bed.sessions):,} test sessions")
    ranks = {m.label: bed.ranks(bed.finals(m)) for m in models}
    one = _named(models, options.model, "--model") or models[-1]
    other = _named(models, options.against, "--against") or _strongest([m for m in models if m is not one], ranks)
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
    chosen = choose(bed, [*wins, *losses], min(options.sessions, len(bed.sessions)))
    strips = dict(zip(chosen, strips_of(bed, one, chosen, options.k), strict=True))
    changed = [*wins, *losses]
    against = dict(zip(changed, strips_of(bed, other, changed, options.k), strict=True)) if other else {}
    last = next((m for m in models if m.name == "last"), None)
    kept = telling_session(bed, one, last, requests, options.k) if last and requests and one.by_turn else None
    example = orders[1].examples.get(one.label)
    notes = ["Not trained yet: " + command for command in missing]
    if bed.dropped:
        notes.append(
            f"{bed.dropped:,} test sessions are left out: a feature or their target is missing from the store."
        )
    return {
        "spec": spec,
        "dataset": dataset,
        "experiment": experiment,
        "options": options,
        "models": models,
        "notes": notes,
        "tables": report_tables(experiment, data),
        "curves": learning_curves(found),
        "diagnostics": diagnostics(found, spec),
        "memory": memory_figure(experiment),
        "retention": retention,
        "orders": orders,
        "one": one,
        "other": other,
        "wins": [Pair(strips[n], against[n]) for n in wins if n in strips],
        "kept": None
        if kept is None or last is None
        else (last, Pair(*(strips_of(bed, m, [kept], options.k)[0] for m in (one, last)))),
        "turned": None if example is None else (bed.sessions[example.session], example),
        "losses": [Pair(strips[n], against[n]) for n in losses if n in strips],
        "strips": sorted(strips.values(), key=lambda s: (s.category, s.session)),
        "total": len(bed.sessions),
        "spread": _spread(ranks, models),
        "pictures": Pictures(dataset),
    }


def _first_seeds(found: Sequence[Trained]) -> list[Trained]:
    """Return one run per model, that of its first seed. Tables average over all seeds."""
    first: dict[str, Trained] = {}
    for trained in found:
        first.setdefault(trained.name, trained)
    return list(first.values())


def _named(models: Sequence[Trained], name: str | None, option: str) -> Trained | None:
    if name is None:
        return None
    chosen = next((m for m in models if name in (m.name, m.label, m.run)), None)
    if chosen is None:
        hint = nearest(name, [m.name for m in models])
        raise ManifestError([Problem(option, name, "no trained model of this name", hint)])
    return chosen


def _strongest(models: Sequence[Trained], ranks: dict[str, np.ndarray]) -> Trained | None:
    """Return the model with the highest mean of R@5 and R@8 over all test sessions."""
    return max(models, key=lambda m: float((ranks[m.label] <= 5).mean() + (ranks[m.label] <= 8).mean()), default=None)


def _spread(ranks: dict[str, np.ndarray], models: Sequence[Trained]) -> list[tuple[str, list[str]]]:
    """Return quartiles of each model's final rank, for the heading of the sessions."""
    quartiles = {m.label: np.percentile(ranks[m.label], (25, 50, 75, 90)) for m in models}
    return [(label, [f"{q:.0f}" for q in found]) for label, found in quartiles.items()]
