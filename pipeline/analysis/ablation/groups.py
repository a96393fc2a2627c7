"""Joint training and evaluation of runs of equal shape, in this process or on the workers of a Dask cluster."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from manifests.load import load_dataset
from manifests.schema import RunSpec
from pipeline.analysis.ablation.plan import Group
from pipeline.core.cluster import ClusterError, connect
from pipeline.core.device import training_threads
from pipeline.core.workspace import Workspace
from pipeline.jobs.experiment import Experiment, Log, silent
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
            error = future.exception()
            if error is not None:
                failed.append(f"  {group.label}: {error}")
                log(f"failed: {group.label}: {error}")
                continue
            for line in future.result():
                log(line)
    if failed:
        raise ClusterError(
            "\n".join([f"{len(failed)} of {len(groups)} groups failed:", *failed, "run the same command to resume"])
        )


def _work(job: Job, group: Group) -> list[str]:
    return list(do_group(_experiment(job), group, TrainOptions(threads=job.threads)))


@lru_cache(maxsize=2)
def _experiment(job: Job) -> Experiment:
    """Return the experiment of ``job``; its features stay loaded between the tasks of a worker."""
    spec = RunSpec.model_validate_json(job.spec)
    return Experiment(spec, load_dataset(spec, Path(job.data)), Workspace(Path(job.out)), job.device)
