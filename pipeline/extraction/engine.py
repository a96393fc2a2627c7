"""Extraction engine: worker threads decode and tokenize, one thread stacks batches and copies them to the device, and
the calling thread runs the model. Bounded queues connect them.

The engine does not use the store: the caller commits the outcome (rows and failures) of each task.
``process_plainly`` does the same without threads and is the reference in the tests.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from manifests.errors import FashionNTMError
from pipeline.extraction.batches import IMAGES_A_JOB, ForwardBatch, Job, ShardTask, batches_of, collate_for, jobs_of
from pipeline.extraction.extractors.base import Extractor
from pipeline.extraction.meter import Meter
from pipeline.extraction.prefetch import InThread, in_order
from pipeline.extraction.prepare import prepare
from pipeline.extraction.runner import Outcome, Runner

BATCHES_AHEAD = 2  # stacked batches queued for the model: one being copied, one ready


class TooManyFailures(FashionNTMError):
    """More items failed than the job allows. Finished rows are kept."""

    def __init__(self, failed: int, limit: int, what: str = "failed", example: str = ""):
        super().__init__(
            f"{failed} items {what}, more than --max-failures {limit}{example}; what is finished is kept: mend the items or "
            "raise the limit, and run the same command again"
        )


def process(
    extractor: Extractor,
    tasks: Sequence[ShardTask],
    *,
    root: Path | None,
    batch_size: int,
    workers: int,
    meter: Meter,
    max_failures: int | None = None,
    on_batch: Callable[[], None] = lambda: None,
    gate: AbstractContextManager[Any] = nullcontext(),  # noqa: B008 - stateless
) -> Iterator[Outcome]:
    """Yield the outcomes of ``tasks`` in order, preparing the next tasks while the model runs.

    ``root``: the images folder, resolved. ``workers``: threads that prepare items (0: none, see ``process_plainly``).
    Texts are batched by length within a task, images in order. Memory: about four batches of prepared images and the
    rows of two tasks. ``gate``: held while the model runs, but not while the first batches are prepared, so two calls
    that share a gate alternate on one model without a pause. On KeyboardInterrupt or TooManyFailures, the finished
    rows are yielded before the error is raised.
    """
    if workers == 0:
        yield from process_plainly(extractor, tasks, root, batch_size, meter, max_failures, on_batch)
        return
    images = any(not task.by_length for task in tasks)
    # prefetch window: one batch of images beyond the one being stacked, or one more task of texts
    ahead = max(1, batch_size // IMAGES_A_JOB) + workers if images else 1
    put_together = collate_for(extractor.device) if extractor.stacks else list

    def collate(parts: Sequence[Any]) -> Sequence[Any]:
        with meter.time("stack"):
            return put_together(parts)

    def work(job: Job) -> list[Any]:
        return prepare(extractor, tasks[job.task].items[job.start : job.stop], root, meter)

    def batches() -> Generator[ForwardBatch, None, None]:
        yield from batches_of(tasks, in_order(work, jobs_of(tasks), workers, ahead), batch_size, collate)

    with InThread(batches(), BATCHES_AHEAD) as ready, gate:
        yield from _model(Runner(extractor, batch_size, meter), tasks, ready, meter, max_failures, on_batch)


def process_plainly(
    extractor: Extractor,
    tasks: Sequence[ShardTask],
    root: Path | None,
    batch_size: int,
    meter: Meter,
    max_failures: int | None = None,
    on_batch: Callable[[], None] = lambda: None,
) -> Iterator[Outcome]:
    """Run ``process`` sequentially in one thread, with the same batches and therefore bit-identical rows."""
    prepared = (
        (job, prepare(extractor, tasks[job.task].items[job.start : job.stop], root, meter)) for job in jobs_of(tasks)
    )
    ready = batches_of(tasks, prepared, batch_size)
    yield from _model(Runner(extractor, batch_size, meter), tasks, ready, meter, max_failures, on_batch)


def _model(
    runner: Runner,
    tasks: Sequence[ShardTask],
    ready: Iterator[ForwardBatch],
    meter: Meter,
    max_failures: int | None,
    on_batch: Callable[[], None],
) -> Iterator[Outcome]:
    """Run batches through the model; yield a task's outcome when its last row is in host memory."""
    outcome = Outcome("")
    try:
        for batch in ready:
            if batch.task != outcome.task:
                outcome = Outcome(tasks[batch.task].table, batch.task)
            meter.now = outcome.table
            outcome.failures.extend(batch.failures)
            meter.failed += len(batch.failures)
            runner.push(batch, outcome)
            on_batch()
            _stop_at(max_failures, meter, outcome)
            yield from runner.finished()
        runner.flush()
        yield from runner.finished()
    except (KeyboardInterrupt, TooManyFailures):
        runner.flush()
        yield from runner.finished()
        if not outcome.whole and (len(outcome) or outcome.failures):
            yield outcome
        raise


def _stop_at(limit: int | None, meter: Meter, outcome: Outcome) -> None:
    failed = meter.failed + meter.unusable
    if limit is not None and failed > limit:
        last = outcome.failures[-1] if outcome.failures else None
        example = f", the last: {last.item.names[0]!r} ({last.stage}: {last.reason})" if last else ""
        raise TooManyFailures(failed, limit, example=example)
