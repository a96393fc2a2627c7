"""Extraction engine: worker processes decode, one thread tokenizes, stacks batches and copies them to the device, and
the calling thread runs the model. Bounded queues connect them.

The engine does not use the store: the caller commits the outcome (rows and failures) of each task.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Generator, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import Any

from manifests.errors import FashionNTMError
from pipeline.extraction.decoding import Decoder
from pipeline.extraction.extractors.base import Extractor
from pipeline.extraction.prefetch import InThread
from pipeline.extraction.prepare import add_texts, decode_ahead
from pipeline.extraction.progress import Meter
from pipeline.extraction.runner import Outcome, Runner
from pipeline.extraction.work import ForwardBatch, Hook, Item, Job, ShardTask, batches_of, jobs_of

_ON_CTRL_C = signal.default_int_handler
BATCHES_AHEAD = 2  # stacked batches queued for the model: one being copied, one ready


class TooManyFailures(FashionNTMError):
    """More items failed than the job allows. Finished rows are kept."""

    def __init__(self, failed: int, limit: int, what: str = "failed", example: str = ""):
        fix = "what is finished is kept: mend the items or raise the limit, and run the same command again"
        super().__init__(f"{failed} items {what}, more than --max-failures {limit}{example}; {fix}")


def process(
    extractor: Extractor,
    tasks: Sequence[ShardTask],
    root: Path | None,
    batch_size: int,
    workers: int,
    meter: Meter,
    max_failures: int | None = None,
    on_batch: Hook = lambda: None,
    gate: AbstractContextManager[Any] = nullcontext(),  # noqa: B008 - stateless
    decoder: Decoder | None = None,
) -> Iterator[Outcome]:
    """Yield the outcomes of ``tasks`` in order, preparing the next batches while the model runs.

    ``root``: the images folder, resolved. ``workers``: processes that decode images (0: everything in sequence in the
    calling thread; the rows have the same bits). ``decoder``: existing ones to use instead. Texts are batched by length
    within a task, images in order. Memory: about four batches of prepared images, the decoders' results and the rows of
    two tasks. ``gate``: held while the model runs, but not while the first batches are prepared, so two calls that share
    a gate alternate on one model without a pause. On KeyboardInterrupt or TooManyFailures, the finished rows are yielded
    before the error is raised.
    """
    extractor.require()
    runner = Runner(extractor, batch_size, meter)

    def collate(parts: Sequence[Any]) -> Sequence[Any]:
        # also in sequence: stacked arrays are aligned alike, on which the rounding of a matrix product depends
        with meter.time("stack"):
            return extractor.stack(parts)

    def batches() -> Generator[ForwardBatch, None, None]:
        with nullcontext(decoder) if decoder is not None else Decoder(extractor, root, workers) as decoding:
            yield from batches_of(tasks, _prepared(extractor, tasks, decoding, meter), batch_size, collate)

    with InThread(batches(), BATCHES_AHEAD) if workers else closing(batches()) as ready, gate:
        yield from _model(runner, tasks, ready, max_failures, on_batch)


def _prepared(
    extractor: Extractor, tasks: Sequence[ShardTask], decoder: Decoder, meter: Meter
) -> Iterator[tuple[Job, list[Any]]]:
    """Yield the jobs in order with their prepared parts or failures: images from the decoder, texts tokenized here."""

    def items(job: Job) -> Sequence[Item]:
        return tasks[job.task].items[job.start : job.stop]

    images = sum(len(task.items) for task in tasks if not task.by_length)
    jobs = list(jobs_of(tasks, extractor.images_per_job))
    pixels = decoder.run((items(job) for job in jobs if not tasks[job.task].by_length), images, meter)
    for job in jobs:
        some = items(job)
        found = [None] * len(some) if tasks[job.task].by_length else next(pixels)
        with meter.time("stack"):
            found = decode_ahead(extractor, some, found)
        yield job, add_texts(extractor, some, found, meter)
    next(pixels, None)  # to its end: the decoder is free again


def _model(
    runner: Runner, tasks: Sequence[ShardTask], ready: Iterator[ForwardBatch], max_failures: int | None, on_batch: Hook
) -> Iterator[Outcome]:
    """Run batches through the model; yield a task's outcome when its last row is in host memory."""
    outcome, meter = Outcome(""), runner.meter
    try:
        for batch in ready:
            if batch.task != outcome.task:
                outcome = Outcome(tasks[batch.task].table, batch.task)
            meter.now = outcome.table
            outcome.failures.extend(batch.failures)
            meter.failed += len(batch.failures)
            runner.push(batch, outcome)
            on_batch()
            last = outcome.failures[-1] if outcome.failures else None
            example = f", the last: {last.item.names[0]!r} ({last.stage}: {last.reason})" if last else ""
            stop_at(max_failures, meter, example)
            yield from runner.finished()
        yield from runner.finished(wait=True)
    except (KeyboardInterrupt, TooManyFailures):
        yield from runner.finished(wait=True)
        if not outcome.whole and (len(outcome) or outcome.failures):
            yield outcome
        raise


def stop_at(limit: int | None, meter: Meter, example: str = "") -> None:
    """Raise TooManyFailures if more than ``limit`` items failed."""
    failed = meter.failed + meter.unusable
    if limit is not None and failed > limit:
        raise TooManyFailures(failed, limit, example=example)


@contextmanager
def gentle_interrupt() -> Iterator[Hook]:
    """Yield a function to call between batches that raises KeyboardInterrupt after a SIGINT.

    A second SIGINT interrupts at once. Does nothing outside the main thread, or if SIGINT is ignored or has another
    handler.
    """
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) is not _ON_CTRL_C:
        yield lambda: None
        return
    asked = threading.Event()

    def note(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, _ON_CTRL_C)
        asked.set()

    def check() -> None:
        if asked.is_set():
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, note)
    try:
        yield check
    finally:
        signal.signal(signal.SIGINT, _ON_CTRL_C)
        check_late = asked.is_set()
    if check_late:  # SIGINT after the last check
        raise KeyboardInterrupt
