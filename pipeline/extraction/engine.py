"""Items in, shards out: worker threads prepare, one thread runs the model, a bounded window lies between them.

Knows no store: a shard is a task whose outcome (rows and failures) the caller commits.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from manifests.errors import FashionNTMError
from manifests.identity import stack_keys
from pipeline.device import free_memory, is_out_of_memory
from pipeline.extraction.extractors.base import Extractor, ExtractorError
from pipeline.extraction.images import ItemError, decode, read
from pipeline.extraction.meter import Meter
from pipeline.extraction.plan import Item

A, B = TypeVar("A"), TypeVar("B")
_IMAGES_A_JOB = 4  # a job of a worker thread: few images, so that the window stays small and its overhead too


class TooManyFailures(FashionNTMError):
    """More items failed than the job allows. What was finished before is kept."""


@dataclass(frozen=True)
class Task:
    """One shard to be: its rows, in the order in which they will be written."""

    table: str
    items: Sequence[Item]


@dataclass(frozen=True)
class ItemFailure:
    """An item without a row: ``stage`` is "read", "decode", "tokenise" or "encode"."""

    item: Item
    stage: str
    reason: str


@dataclass
class Outcome:
    """A task's rows in plan order, less the failed ones. ``seconds``: the model's time. May be partial when stopped."""

    table: str
    # (positions in the task, content keys, features [n, D]) of each batch; appended whole, so an interrupt cannot split it
    pieces: list[tuple[list[int], list[bytes], np.ndarray]] = field(default_factory=list)
    failures: list[ItemFailure] = field(default_factory=list)
    seconds: float = 0.0

    def __len__(self) -> int:
        return sum(len(positions) for positions, _, _ in self.pieces)

    def rows(self) -> tuple[np.ndarray, np.ndarray]:
        """(keys uint8 [n, 16], features [n, D])."""
        order = np.argsort([p for positions, _, _ in self.pieces for p in positions], kind="stable")
        keys = stack_keys(key for _, keys, _ in self.pieces for key in keys)
        return keys[order], np.concatenate([rows for _, _, rows in self.pieces])[order]


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
    runner = _Runner(extractor, batch_size, meter)
    images = any(task.items and task.items[0].file is not None for task in tasks)
    jobs = _jobs(tasks)
    # window: two batches of images ahead of the model, or one more task of texts
    ahead = max(1, 2 * batch_size // _IMAGES_A_JOB) + workers if images else 1
    outcome, waiting = Outcome(""), []

    def prepare(job: _Job) -> list[Any]:
        return _prepare(extractor, tasks[job.task].items[job.start : job.stop], root, meter)

    try:
        for job, prepared in in_order(prepare, jobs, workers, ahead):
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


def in_order(function: Callable[[A], B], jobs: Iterable[A], workers: int, ahead: int) -> Iterator[tuple[A, B]]:
    """(job, function(job)) in the order of ``jobs``, with at most ``ahead`` jobs begun or finished but not yet taken.

    ``workers`` 0 runs every job in the calling thread.
    """
    if workers == 0:
        yield from ((job, function(job)) for job in jobs)
        return
    pool = ThreadPoolExecutor(workers, "prepare")
    try:
        window: deque[tuple[A, Future[B]]] = deque()
        for job in jobs:
            window.append((job, pool.submit(function, job)))
            if len(window) > ahead:
                first, future = window.popleft()
                yield first, future.result()
        while window:
            first, future = window.popleft()
            yield first, future.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _prepare(extractor: Extractor, items: Sequence[Item], root: Path | None, meter: Meter) -> list[Any]:
    """For each item its prepared parts (image, text; those it has), or an ItemFailure. Runs in worker threads."""
    parts: list[list[Any] | ItemFailure] = [[] for _ in items]
    for n, item in enumerate(items):
        if item.file is not None:
            assert root is not None
            with meter.time("decode"):
                parts[n] = _pixels(extractor, item, root)
    with meter.time("tokenise"):
        for texts in ([item.caption for item in items], [item.text for item in items]):
            have = [n for n, t in enumerate(texts) if t is not None and not isinstance(parts[n], ItemFailure)]
            ready = _texts(extractor, [texts[n] for n in have], [items[n] for n in have])
            for n, found in zip(have, ready, strict=True):
                parts[n] = found if isinstance(found, ItemFailure) else [*parts[n], found]  # type: ignore[misc]
    return parts


def _pixels(extractor: Extractor, item: Item, root: Path) -> list[Any] | ItemFailure:
    assert item.file is not None
    try:
        return [extractor.prepare(decode(read(root, item.file, item.image)))]
    except ItemError as error:
        return ItemFailure(item, error.stage, error.reason)
    except Exception as error:  # an image whose shape the model's own preprocessing does not take
        return ItemFailure(item, "decode", f"preprocessing failed: {_one_line(error)}")


def _texts(extractor: Extractor, texts: Sequence[Any], items: Sequence[Item]) -> list[Any]:
    try:
        return extractor.prepare_texts(texts)
    except Exception as error:
        if len(texts) == 1:
            return [ItemFailure(items[0], "tokenise", _one_line(error))]
        return [_texts(extractor, [t], [i])[0] for t, i in zip(texts, items, strict=True)]


class _Runner:
    """Runs batches through the model; a batch that does not fit is halved, and so are those after it."""

    def __init__(self, extractor: Extractor, batch_size: int, meter: Meter):
        self.extractor, self.limit, self.meter = extractor, batch_size, meter

    def run(self, batch: list[tuple[int, Item, Any]], outcome: Outcome) -> None:
        """Add the batch's rows and failures to ``outcome``."""
        before = self.meter.seconds["model"]
        start = 0
        while start < len(batch):
            piece = batch[start : start + self.limit]
            with self.meter.time("model"):
                rows, error = self._try(piece, outcome.table)
            if rows is None and error is not None and is_out_of_memory(error) and len(piece) > 1:
                self.limit = max(1, len(piece) // 2)
                free_memory(self.extractor.device)
                continue
            if rows is None and error is not None and len(piece) > 1:
                self._one_by_one(piece, error, outcome)
            else:
                self._keep(piece, rows, error, outcome)
            start += len(piece)
        outcome.seconds += self.meter.seconds["model"] - before

    def _try(self, piece: list[tuple[int, Item, Any]], table: str) -> tuple[np.ndarray | None, Exception | None]:
        parts = [p for _, _, p in piece]
        first = [p[0] for p in parts]
        try:
            if table == "query":
                rows = self.extractor.encode_pairs(first, [p[1] for p in parts])
            else:
                rows = self.extractor.encode_texts(first) if table == "text" else self.extractor.encode_images(first)
        except (ExtractorError, torch.AcceleratorError):
            raise  # a broken extractor or a lost device fails every item after it too
        except Exception as error:
            error.__traceback__ = None  # its frames hold the batch's tensors, and memory may be what is short
            return None, error
        if rows.shape[1] != self.extractor.dim(table):
            raise ExtractorError(
                f"extractor {self.extractor.name!r} gave rows of {rows.shape[1]} for table '{table}', which has "
                f"dim {self.extractor.dim(table)}"
            )
        return rows, None

    def _one_by_one(self, piece: list[tuple[int, Item, Any]], error: Exception, outcome: Outcome) -> None:
        """The model refused a batch: find the items at fault. When it is all of them, the model is, and that is raised."""
        alone = Outcome(outcome.table)
        for one in piece:
            with self.meter.time("model"):
                rows, own = self._try([one], outcome.table)
            self._keep([one], rows, own, alone)
        if len(alone.failures) == len(piece):
            raise ExtractorError(
                f"extractor {self.extractor.name!r} failed on every item of a batch: {_one_line(error)}"
            ) from error
        outcome.pieces.extend(alone.pieces)
        outcome.failures.extend(alone.failures)

    def _keep(
        self, piece: list[tuple[int, Item, Any]], rows: np.ndarray | None, error: Exception | None, outcome: Outcome
    ) -> None:
        if rows is None:
            assert error is not None
            reason = "out of memory, even alone" if is_out_of_memory(error) else _one_line(error)
            outcome.failures.append(ItemFailure(piece[0][1], "encode", reason))
            self.meter.failed += 1
            return
        good = np.isfinite(rows).all(axis=1)
        hint = "" if self.extractor.options.dtype == "float32" else f" in {self.extractor.options.dtype}: try float32"
        kept = [one for one, fine in zip(piece, good, strict=True) if fine]
        outcome.failures.extend(
            ItemFailure(one[1], "encode", f"the model gave NaN or Inf{hint}")
            for one, fine in zip(piece, good, strict=True)
            if not fine
        )
        if kept:
            positions, keys = [one[0] for one in kept], [one[1].key for one in kept]
            outcome.pieces.append((positions, keys, rows if len(kept) == len(piece) else rows[good]))
        self.meter.done += int(good.sum())
        self.meter.failed += int((~good).sum())


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
