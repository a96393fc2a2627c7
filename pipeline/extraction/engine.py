"""Items in, shards out: worker threads prepare, one thread runs the model, a bounded window lies between them.

Knows no store: a shard is a task whose outcome (rows and failures) the caller commits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from manifests.errors import FashionNTMError
from pipeline.extraction.extractors.base import Extractor
from pipeline.extraction.meter import Meter
from pipeline.extraction.prepare import ItemFailure, in_order, prepare
from pipeline.extraction.runner import Outcome, Runner
from pipeline.extraction.work import Item

_IMAGES_A_JOB = 4  # a job of a worker thread: few images, so that the window stays small and its overhead too


class TooManyFailures(FashionNTMError):
    """More items failed than the job allows. What was finished before is kept."""


@dataclass(frozen=True)
class Task:
    """One shard to be: its rows, in the order in which they will be written."""

    table: str
    items: Sequence[Item]


@dataclass(frozen=True)
class _Job:
    task: int
    start: int
    stop: int


def process(
    extractor: Extractor,
    tasks: Sequence[Task],
    *,
    root: Path | None,
    batch_size: int,
    workers: int,
    meter: Meter,
    max_failures: int | None = None,
    on_batch: Callable[[], None] = lambda: None,
) -> Iterator[Outcome]:
    """Outcomes of ``tasks`` in order; the next tasks are prepared while the model works on this one.

    ``root``: the images folder, resolved. Texts are batched by length within a task, images as they come. When stopped
    by KeyboardInterrupt or TooManyFailures, the rows finished so far are given first, then the error is raised.
    """
    runner = Runner(extractor, batch_size, meter)
    images = any(task.items and task.items[0].file is not None for task in tasks)
    jobs = _jobs(tasks)
    # window: two batches of images ahead of the model, or one more task of texts
    ahead = max(1, 2 * batch_size // _IMAGES_A_JOB) + workers if images else 1
    outcome, waiting = Outcome(""), []

    def work(job: _Job) -> list[Any]:
        return prepare(extractor, tasks[job.task].items[job.start : job.stop], root, meter)

    try:
        for job, prepared in in_order(work, jobs, workers, ahead):
            task = tasks[job.task]
            if job.start == 0:
                outcome, waiting = Outcome(task.table), []
            meter.now = task.table
            for position, found in enumerate(prepared, start=job.start):
                if isinstance(found, ItemFailure):
                    outcome.failures.append(found)
                    meter.failed += 1
                else:
                    waiting.append((position, task.items[position], found))
            last = job.stop == len(task.items)
            if _by_length(task):
                waiting.sort(key=lambda w: -len(w[2][-1]))  # longest first: if memory is short, it shows at once
            while len(waiting) >= batch_size or (last and waiting):
                runner.run(waiting[:batch_size], outcome)
                waiting = waiting[batch_size:]
                on_batch()
                _stop_at(max_failures, meter, outcome)
            _stop_at(max_failures, meter, outcome)
            if last:
                yield outcome
                outcome = Outcome("")
    except (KeyboardInterrupt, TooManyFailures):
        if len(outcome) or outcome.failures:
            yield outcome
        raise


def _stop_at(limit: int | None, meter: Meter, outcome: Outcome) -> None:
    failed = meter.failed + meter.unusable
    if limit is not None and failed > limit:
        last = outcome.failures[-1] if outcome.failures else None
        example = f", the last: {last.item.names[0]!r} ({last.stage}: {last.reason})" if last else ""
        raise TooManyFailures(f"{failed} items failed, more than --max-failures {limit}{example}")


def _by_length(task: Task) -> bool:
    return bool(task.items) and task.items[0].file is None


def _jobs(tasks: Sequence[Task]) -> Iterator[_Job]:
    for number, task in enumerate(tasks):
        step = len(task.items) if _by_length(task) else _IMAGES_A_JOB
        for start in range(0, len(task.items), step):
            yield _Job(number, start, min(start + step, len(task.items)))
