"""Items in, shards out, everything overlapped: worker threads decode and tokenise, one thread stacks batches and sends
them to the device, the calling thread runs the model. Bounded queues lie between them.

Knows no store: a shard is a task whose outcome (rows and failures) the caller commits. ``process_plainly`` is the same
without threads: the reference that the tests hold the engine against.
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

BATCHES_AHEAD = 2  # stacked batches that wait for the model: one being copied, one ready


class TooManyFailures(FashionNTMError):
    """More items failed than the job allows. What was finished before is kept."""

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
    gate: AbstractContextManager[Any] = nullcontext(),  # noqa: B008 - it has no state
) -> Iterator[Outcome]:
    """Outcomes of ``tasks`` in order; the next tasks are prepared while the model works on this one.

    ``root``: the images folder, resolved. ``workers``: threads that prepare (0: none, see ``process_plainly``). Texts
    are batched by length within a task, images as they come. In memory at any time: about four batches of prepared
    images, and the rows of two tasks. ``gate`` is held while the model runs, not while the first batches are prepared: two
    calls that share it take turns at one model without a pause. When stopped by KeyboardInterrupt or TooManyFailures, the rows finished so far
    are given first, then the error is raised.
    """
    if workers == 0:
        yield from process_plainly(extractor, tasks, root, batch_size, meter, max_failures, on_batch)
        return
    images = any(not task.by_length for task in tasks)
    # window: a batch of images ahead of the one being stacked, or one more task of texts
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
    """``process`` in one thread, one step after another: the same batches, so the same bits."""
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
    """Batches through the model; a task's outcome when its last row is back in host memory."""
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
