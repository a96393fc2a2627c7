"""``ablate``: complete the runs of an ablation; finished runs are reused."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from manifests.ablation_spec import AblationSpec, chosen_variants, load_ablation_spec
from manifests.commandline import repeated_options
from manifests.load import load_dataset
from manifests.schema import Dataset, RunSpec
from pipeline.analysis.ablation.groups import Job, run_here, run_on_cluster
from pipeline.analysis.ablation.plan import AblationPlan, plan_ablation
from pipeline.analysis.ablation.timing import measure_timing, read_timing, timing_file
from pipeline.analysis.tuning.sealed import read_spec
from pipeline.core.workspace import Workspace
from pipeline.jobs.experiment import Experiment, Log, silent
from pipeline.jobs.run import make_features
from pipeline.jobs.specs import check_components


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

    def dataset(self) -> Dataset:
        return load_dataset(self.spec, self.data)


def open_ablation(
    name: str,
    run: str,
    overrides: Sequence[str],
    data: Path,
    out: Path,
    device: str = "auto",
) -> Place:
    """Open ablation ``name`` on run spec ``run`` ("": its own), with the ablation's windows for stage 1 added.

    Raises ManifestError with every problem.
    """
    ablation = load_ablation_spec(name)
    run = run or ablation.run
    spec = read_spec(run, overrides, shlex.join([run, *repeated_options(overrides, data, out)]))
    windows = tuple(dict.fromkeys((*spec.windows, *ablation.windows)))
    spec = spec.model_copy(update={"windows": windows, "dialogs": spec.dialogs or ablation.dialogs})
    check_components(spec)
    return Place(ablation, spec, data, out, device)


def variants_of(place: Place, labels: Sequence[str] = ()) -> list[Place]:
    """Return one place per dataset and composer of the ablation; the place itself if it has none.

    ``labels``: of the wanted variants. Raises ManifestError for an unknown one.
    """
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
    ablation, spec, workspace = place.ablation, place.spec, place.workspace
    dataset = place.dataset()
    for note in dataset.notes:
        log(f"note: {note}")
    plan = plan_ablation(ablation, spec, dataset, workspace, place.device, only, seeds, measure=False)
    if sum(plan.extractions.values()) or ablation.composers or ablation.datasets:  # each has a store of its own
        log(plan.headline)
        make_features(spec, dataset, workspace, place.device, log)
    experiment = Experiment(spec, dataset, workspace, place.device, log)
    plan = plan_ablation(ablation, spec, dataset, workspace, place.device, only, seeds, experiment=lambda: experiment)
    log(plan.headline)
    if scheduler or workers:
        run_on_cluster(Job.of(spec, place.data, place.out, place.device), plan.groups, scheduler, workers, log)
    else:
        run_here(experiment, plan.groups, log)
    after = plan_ablation(
        ablation, spec, dataset, workspace, place.device, only, seeds, measure=False, experiment=lambda: experiment
    )
    if ablation.timing:
        time_points(place, experiment, dataset, seeds, log)
    return after


def time_points(
    place: Place, experiment: Experiment, dataset: Dataset, seeds: Sequence[int] = (), log: Log = silent
) -> None:
    """Measure the inference time of every point with a finished run, unless all of them are measured already.

    If one point is new, all points are measured again, because only times measured side by side are comparable.
    """
    every = tuple(dict.fromkeys((*place.ablation.seeds, *seeds)))
    plan = plan_ablation(
        place.ablation,
        place.spec,
        dataset,
        place.workspace,
        place.device,
        (),
        every,
        measure=False,
        experiment=lambda: experiment,
    )
    path = timing_file(place.out, place.ablation.name)
    known = read_timing(path).get("runs", {})
    first = {task.point.number: task for task in reversed(plan.tasks) if task.trained}
    if any(experiment.folder(task.run).id not in known for task in first.values()):
        log(f"measuring the inference time of {len(first)} points, side by side")
        record: dict[str, Any] = measure_timing(experiment, list(first.values()), path)
        log(f"written to {path} ({record['device']}, {record['threads']} threads)")
