"""``ablate``: complete the runs of an ablation, in this process or on a Dask cluster; finished runs are reused."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from manifests.ablation_spec import chosen_variants, load_ablation_spec
from manifests.commandline import repeated_options
from manifests.load import load_dataset
from manifests.schema import RunSpec
from pipeline.analysis.ablation.plan import AblationPlan, Group, Place, plan_ablation
from pipeline.analysis.ablation.timing import measure_timing, read_timing, timing_file
from pipeline.analysis.tuning.trials import read_spec
from pipeline.core.cluster import ClusterError, connect
from pipeline.core.device import training_threads
from pipeline.core.workspace import Workspace
from pipeline.jobs.experiment import Experiment, Log, silent
from pipeline.jobs.run import make_features
from pipeline.jobs.specs import check_components
from pipeline.jobs.stage2 import PLAIN, TrainOptions, evaluate_run, train
from pipeline.training.errors import DivergenceError


@dataclass(frozen=True)
class Job:
    """Parameters for a worker to load the features; plain values only, because they are sent over the network."""

    spec: str  # RunSpec as JSON
    data: str
    out: str
    device: str
    threads: int  # CPU threads per worker for training, as here: another number changes the rounding of sums

    @classmethod
    def of(cls, spec: RunSpec, data: Path, out: Path, device: str) -> Job:
        return cls(spec.model_dump_json(), str(data.resolve()), str(out.resolve()), device, training_threads())


def do_group(experiment: Experiment, group: Group, options: TrainOptions = PLAIN) -> Iterator[str]:
    """Train and evaluate the missing runs and views of ``group``; yield one line per run."""
    missing = {id(task.run): task.missing for task in group.tasks}
    every = tuple(dict.fromkeys(view for task in group.tasks for view in task.missing))
    for run, done in train(experiment, group.runs, options):
        if isinstance(done, DivergenceError):
            continue
        views = missing[id(run)] if done.reused else every
        for view in views:
            evaluate_run(experiment, run, view)
        told = "trained before" if done.reused else f"trained in {done.summary['seconds']:.1f} s"
        yield f"{group.label} seed {run.seed}: {told}, evaluated; run {done.folder.id}"


def run_on_cluster(job: Job, groups: Sequence[Group], scheduler: str = "", workers: int = 0, log: Log = silent) -> None:
    """Run all groups on the workers of ``scheduler``, or on ``workers`` local processes; a group is one task.

    Workers read features from and write runs to the same folders, which must be shared. Finished runs are kept if the
    cluster or this process ends. Raises ClusterError naming the failed groups after the others have ended.
    """
    with connect(scheduler, workers) as client:
        futures = {client.submit(_work, job, group, pure=False, retries=0): group for group in groups}
        from distributed import as_completed

        failed: list[str] = []
        for future in as_completed(futures, loop=client.loop):  # the client is not the default one
            group = futures[future]
            if (error := future.exception()) is not None:
                failed.append(f"  {group.label}: {error}")
                log(f"failed: {group.label}: {error}")
            for line in future.result() if error is None else ():
                log(line)
    if failed:
        head = f"{len(failed)} of {len(groups)} groups failed:"
        raise ClusterError("\n".join([head, *failed, "run the same command to resume"]))


def _work(job: Job, group: Group) -> list[str]:
    return list(do_group(_experiment(job), group, TrainOptions(threads=job.threads)))


@lru_cache(maxsize=2)
def _experiment(job: Job) -> Experiment:
    """Return the experiment of ``job``; its features stay loaded between the tasks of a worker."""
    spec = RunSpec.model_validate_json(job.spec)
    return Experiment(spec, load_dataset(spec, Path(job.data)), Workspace(Path(job.out)), job.device)


def open_ablation(name: str, spec: str, overrides: Sequence[str], data: Path, out: Path, device: str = "auto") -> Place:
    """Open an ablation on run spec ``spec`` or its own, with its windows. Raises ManifestError with every problem."""
    ablation = load_ablation_spec(name)
    spec = spec or ablation.run
    run = read_spec(spec, overrides, shlex.join([spec, *repeated_options(overrides, data, out)]))
    windows = tuple(dict.fromkeys((*run.windows, *ablation.windows)))
    run = run.model_copy(update={"windows": windows, "dialogs": run.dialogs or ablation.dialogs})
    check_components(run)
    return Place(ablation, run, data, out, device)


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
    first = {task.point.number: task.run for task in reversed(plan.tasks) if task.trained}
    if any(experiment.folder(run).id not in known for run in first.values()):
        log(f"measuring the inference time of {len(first)} points, side by side")
        record = measure_timing(experiment, first, path)
        log(f"written to {path} ({record['device']}, {record['threads']} threads)")
