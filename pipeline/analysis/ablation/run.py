"""``ablate``: complete the runs of an ablation; finished runs are reused."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from manifests.ablation_spec import chosen_variants, load_ablation_spec
from manifests.commandline import repeated_options
from pipeline.analysis.ablation.groups import Job, do_group, run_on_cluster
from pipeline.analysis.ablation.plan import AblationPlan, Place, plan_ablation
from pipeline.analysis.ablation.timing import measure_timing, read_timing, timing_file
from pipeline.analysis.tuning.sealed import read_spec
from pipeline.jobs.experiment import Experiment, Log, silent
from pipeline.jobs.run import make_features
from pipeline.jobs.specs import check_components


def open_ablation(name: str, run: str, overrides: Sequence[str], data: Path, out: Path, device: str = "auto") -> Place:
    """Open an ablation on ``run`` or its own run spec, with its windows. Raises ManifestError with every problem."""
    ablation = load_ablation_spec(name)
    run = run or ablation.run
    spec = read_spec(run, overrides, shlex.join([run, *repeated_options(overrides, data, out)]))
    windows = tuple(dict.fromkeys((*spec.windows, *ablation.windows)))
    spec = spec.model_copy(update={"windows": windows, "dialogs": spec.dialogs or ablation.dialogs})
    check_components(spec)
    return Place(ablation, spec, data, out, device)


def variants_of(place: Place, labels: Sequence[str] = ()) -> list[Place]:
    """Return a place per variant (``labels``: the wanted ones), or the place itself. Raises ManifestError."""
    specs = chosen_variants(place.ablation.variants(place.spec), labels)
    return [replace(place, spec=spec, variant=label) for label, spec in specs.items()]


def ablate(
    place: Place,
    only: Sequence[int] = (),
    seeds: Sequence[int] = (),
    scheduler: str = "",
    workers: int = 0,
    log: Log = silent,
) -> AblationPlan:
    """Run the missing parts and return the plan made afterwards, with no pending work."""
    for note in place.dataset.notes:
        log(f"note: {note}")
    about = place.spec, place.dataset, place.workspace, place.device, log
    plan = plan_ablation(place, only, seeds, measure=False)
    own_store = place.ablation.composers or place.ablation.datasets  # each has a store of its own
    if own_store or sum(plan.extractions.values()):
        log(plan.headline)
        make_features(*about)
    experiment = Experiment(*about)
    plan = plan_ablation(place, only, seeds, experiment=experiment)
    log(plan.headline)
    if scheduler or workers:
        run_on_cluster(Job.of(place.spec, place.data, place.out, place.device), plan.groups, scheduler, workers, log)
    else:
        for line in (line for group in plan.groups for line in do_group(experiment, group)):
            log(line)
    if place.ablation.timing:
        time_points(place, experiment, seeds, log)
    return plan_ablation(place, only, seeds, measure=False, experiment=experiment)


def time_points(place: Place, experiment: Experiment, seeds: Sequence[int], log: Log) -> None:
    """Measure the inference time of every point with a finished run, unless all of them are measured already.

    If one point is new, all points are measured again, because only times measured side by side are comparable.
    """
    every = tuple(dict.fromkeys((*place.ablation.seeds, *seeds)))
    plan = plan_ablation(place, (), every, measure=False, experiment=experiment)
    path = timing_file(place.out, place.ablation.name)
    known = read_timing(path).get("runs", {})
    first = {task.point.number: task for task in reversed(plan.tasks) if task.trained}
    if any(experiment.folder(task.run).id not in known for task in first.values()):
        log(f"measuring the inference time of {len(first)} points, side by side")
        record: dict[str, Any] = measure_timing(experiment, list(first.values()), path)
        log(f"written to {path} ({record['device']}, {record['threads']} threads)")
