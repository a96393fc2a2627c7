"""Plan of an ablation: pending rows, trainings and evaluations with reasons, and the time from a measured step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from cache import Store
from manifests.ablation_spec import AblationSpec, Point, chosen_points
from manifests.errors import IncompleteError, ManifestError, Problems
from manifests.identity import pair_key, stack_keys, text_key
from manifests.load import load_dataset
from manifests.options import problems_of
from manifests.schema import Dataset, RunSpec, Training
from manifests.views import View
from pipeline.analysis.ablation.timing import training_seconds, untrained
from pipeline.core.device import seconds_of
from pipeline.core.workspace import Workspace
from pipeline.jobs.experiment import Experiment
from pipeline.jobs.identities import Run, make_run
from pipeline.jobs.stage2 import groups_of, ranking_of
from pipeline.training.models import model_names, model_options


@dataclass(frozen=True)
class Place:
    """Context of an ablation: its spec and run spec, the data, the output folder and the device. ``variant``: its label."""

    ablation: AblationSpec
    spec: RunSpec
    data: Path
    out: Path
    device: str = "auto"
    variant: str = ""

    @property
    def workspace(self) -> Workspace:
        return Workspace(self.out)

    @cached_property
    def dataset(self) -> Dataset:
        return load_dataset(self.spec, self.data)


def not_evaluated(place: Place) -> IncompleteError:
    name = place.ablation.name
    return IncompleteError(f"no run of ablation '{name}' is evaluated: run `ablate {name}`")


@dataclass(frozen=True)
class PlannedRun:
    point: Point
    run: Run
    trainable: bool
    trained: bool
    missing: tuple[View, ...]  # views without an evaluation of the run

    @property
    def done(self) -> bool:
        return self.trained and not self.missing

    @property
    def state(self) -> str:
        return "evaluated" if self.done else "trained" if self.trained else "to do"


@dataclass(frozen=True)
class Group:
    """Runs of one point: equal model, options and training, so equal shapes; only the seeds differ."""

    point: Point
    tasks: tuple[PlannedRun, ...]

    @property
    def runs(self) -> list[Run]:
        return [task.run for task in self.tasks]

    @property
    def label(self) -> str:
        return f"{self.point.number}. {self.point.label}"


def tasks_of(
    ablation: AblationSpec, spec: RunSpec, only: Sequence[int] = (), seeds: Sequence[int] = ()
) -> list[tuple[Point, Run, bool]]:
    """Return (point, run, whether gradient-trained) in order. Raises ManifestError with all invalid options."""
    problems, made = Problems(ablation.name), []
    for point in chosen_points(ablation.points(model_names()), only):
        place = f"point {point.number} ({point.label})"
        own = point.options, point.training
        try:
            runs = [make_run(spec, point.model, seed, *own) for seed in seeds or ablation.seeds]
            kind, _ = model_options(runs[0].model, runs[0].options, place)
        except ManifestError as error:
            problems.found.extend(error.problems)
            continue
        except ValidationError as error:
            problems.found.extend(problems_of(error, Training, ablation.name, f"{place} training"))
            continue
        if runs[0].training.early_stopping and not spec.validation.fraction:
            fix = "set validation.fraction in the run spec, e.g. 0.1"
            problems.add(place, "early stopping needs sessions to validate on", fix)
        made += [(point, run, kind.trainable) for run in (runs if kind.trainable else runs[:1])]
    problems.raise_if_any()
    return made


def by_point(tasks: Sequence[PlannedRun]) -> dict[int, list[PlannedRun]]:
    return {number: list(group) for number, group in groupby(tasks, key=lambda task: task.point.number)}


@dataclass
class AblationPlan:
    """Finished and pending work. ``extractions``: rows that stage 1 would compute, by table, with reasons."""

    name: str
    spec: RunSpec
    tasks: list[PlannedRun]
    extractions: dict[str, int]
    why: str = ""
    seconds: float | None = None  # for all trainings and evaluations; None if nothing can be measured yet
    step_ms: dict[int, float] = field(default_factory=dict)  # point number -> milliseconds of one training step

    @cached_property
    def trainings(self) -> int:
        return sum(task.trainable and not task.trained for task in self.tasks)

    @property
    def evaluations(self) -> int:
        return sum(len(task.missing) for task in self.tasks)

    @property
    def groups(self) -> list[Group]:
        pending = by_point([task for task in self.tasks if not task.done])
        return [Group(tasks[0].point, tuple(tasks)) for tasks in pending.values()]

    @property
    def headline(self) -> str:
        rows = sum(self.extractions.values())
        words = [f"{rows:,} extractions", f"{self.trainings:,} trainings", f"{self.evaluations:,} evaluations"]
        if fits := sum(not task.trainable and not task.trained for task in self.tasks):  # these take seconds
            words.insert(2, f"{fits:,} models without training")
        if not self.groups or (self.seconds is None and not self.trainings):
            return ", ".join(words)
        shown = "time unknown until the features are there" if self.seconds is None else f"about {_span(self.seconds)}"
        return ", ".join([*words, shown])

    def as_dict(self) -> dict[str, Any]:
        points = []
        for t in self.tasks:
            point = {"number": t.point.number, "model": t.point.model, "options": dict(t.point.options)}
            points.append({**point, "training": dict(t.point.training), "seed": t.run.seed, "state": t.state})
        head = {"ablation": self.name, "run": self.spec.name, "extractions": self.extractions, "why": self.why}
        counts = {"trainings": self.trainings, "evaluations": self.evaluations, "seconds": self.seconds}
        return {**head, **counts, "points": points}

    def text(self) -> str:
        lines = [self.headline, *([self.why] if self.why else [])]
        if self.seconds is not None and self.trainings:
            lines.append("time: measured steps and evaluations of each point; early stopping may end sooner")
        for number, tasks in by_point(self.tasks).items():
            states: dict[str, list[str]] = {}
            for task in tasks:
                states.setdefault(task.state, []).append(str(task.run.seed) if task.trainable else "any")
            shown = "; ".join(f"{state}: seed {','.join(seeds)}" for state, seeds in states.items())
            step = f"  ({self.step_ms[number]:.1f} ms a step)" if number in self.step_ms else ""
            lines.append(f"{number:3}. {tasks[0].point.label}  [{shown}]{step}")
        return "\n".join(lines)


def _span(seconds: float) -> str:
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def plan_ablation(
    place: Place,
    only: Sequence[int] = (),
    seeds: Sequence[int] = (),
    measure: bool = True,
    experiment: Experiment | None = None,
) -> AblationPlan:
    """Compare the grid with the existing runs; ``measure``: time a training step and an evaluation of each point.

    ``experiment``: that of ``place``, if it is loaded. Write nothing. Raises ManifestError for an invalid option or point.
    """
    ablation, spec, dataset = place.ablation, place.spec, place.dataset
    made = tasks_of(ablation, spec, only, seeds)
    try:
        loaded = experiment or Experiment(spec, dataset, place.workspace, place.device)
        rows = _missing_rows(loaded.store, dataset)
        tasks = [PlannedRun(p, run, kind, *_state(loaded, run, ablation.views)) for p, run, kind in made]
    except IncompleteError as error:
        rows = {"images": len(dataset.images), "queries": len(set(dataset.queries()))}
        tasks = [PlannedRun(p, run, kind, False, ablation.views) for p, run, kind in made]
        return AblationPlan(ablation.name, spec, tasks, rows, str(error))
    plan = AblationPlan(ablation.name, spec, tasks, rows)
    if measure and plan.groups:
        plan.seconds, plan.step_ms = _measure(loaded, plan.groups)
    return plan


def _state(experiment: Experiment, run: Run, views: Sequence[View]) -> tuple[bool, tuple[View, ...]]:
    if experiment.folder(run).state != "finished":
        return False, tuple(views)
    return True, tuple(view for view in views if experiment.evaluation(run, view) is None)


def _missing_rows(store: Store, dataset: Dataset) -> dict[str, int]:
    """Return the number of rows by table that the dataset needs and the store neither has nor records as failed."""
    catalogue = store.catalogue()
    failed = {failure.key for failure in store.failures()}
    pairs = [(catalogue[i], text_key(t)) for i, t in dict.fromkeys(dataset.queries()) if i in catalogue]
    wanted = {
        "images": ("target", dict.fromkeys(catalogue[i] for i in dataset.images if i in catalogue)),
        "queries": ("query", dict.fromkeys(pair_key(*pair) for pair in pairs)),
    }
    found = {}
    for name, (table, keys) in wanted.items():
        listed = list(keys)
        absent = np.flatnonzero(store.find(table, stack_keys(listed)) < 0) if listed else ()
        found[name] = sum(listed[i].hex() not in failed for i in absent)
    return found


def _measure(experiment: Experiment, groups: Sequence[Group]) -> tuple[float, dict[int, float]]:
    """Return (seconds for all trainings and evaluations of ``groups``, milliseconds per step by point number).

    Early stopping may end sooner. One evaluation of each point is made with its initial weights.
    """
    total, steps_ms = 0.0, {}
    for group in groups:
        waiting = [task.run for task in group.tasks if not task.trained]
        together = experiment.device.type == "cuda"
        for runs in groups_of(waiting, experiment) if together else [waiting] if waiting else []:
            seconds, step = training_seconds([experiment.request(run) for run in runs], together)
            total += seconds
            if step:
                steps_ms[group.point.number] = 1e3 * step
        if missing := [(task, view) for task in group.tasks for view in task.missing]:
            (task, view), *_ = missing
            model = untrained(experiment.request(task.run))
            total += len(missing) * seconds_of(partial(ranking_of, experiment, model, view), experiment.device)
    return total, steps_ms
