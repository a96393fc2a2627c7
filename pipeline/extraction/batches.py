"""Division of tasks into batches, which depends only on the plan and the batch size.

A task therefore gives the same batches and bit-identical rows when it runs overlapped, sequentially, on another machine
or with any number of workers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.extraction.prepare import ItemFailure
from pipeline.extraction.work import Item


@dataclass(frozen=True)
class ShardTask:
    """A planned shard: its items, in the order of the rows to write."""

    table: str
    items: Sequence[Item]

    @property
    def by_length(self) -> bool:
        """Whether items are batched by length: true for texts, false for images and pairs."""
        return bool(self.items) and self.items[0].file is None


@dataclass(frozen=True)
class Job:
    """Unit of preparation: items ``start`` to ``stop`` of a task."""

    task: int
    start: int
    stop: int


@dataclass
class ForwardBatch:
    """A batch: positions in the task, items, and prepared parts (one sequence per part).

    ``failures``: items of the task that failed since the previous batch. ``last``: final batch of the task; it may be
    empty.
    """

    task: int
    positions: list[int] = field(default_factory=list)
    items: list[Item] = field(default_factory=list)
    parts: tuple[Sequence[Any], ...] = ()
    failures: list[ItemFailure] = field(default_factory=list)
    last: bool = False

    def __len__(self) -> int:
        return len(self.items)

    def part(self, start: int, stop: int) -> ForwardBatch:
        """Return a slice of the members, without the failures."""
        parts = tuple(p[start:stop] for p in self.parts)
        return ForwardBatch(self.task, self.positions[start:stop], self.items[start:stop], parts)


def jobs_of(tasks: Sequence[ShardTask], images: int) -> Iterator[Job]:
    """Yield jobs of ``images`` of all tasks in order; a task of texts is one job, as its batches need all lengths."""
    for number, task in enumerate(tasks):
        step = len(task.items) if task.by_length else images
        for start in range(0, len(task.items), step):
            yield Job(number, start, min(start + step, len(task.items)))


def batches_of(
    tasks: Sequence[ShardTask],
    prepared: Iterable[tuple[Job, list[Any]]],
    batch_size: int,
    collate: Callable[[Sequence[Any]], Sequence[Any]] = lambda parts: parts,
) -> Iterator[ForwardBatch]:
    """Yield batches of up to ``batch_size`` items, in order, from the jobs' prepared parts or failures.

    A batch never spans two tasks. ``collate`` receives each part of a batch's items (all images, all texts).
    """
    waiting: list[tuple[int, Item, Any]] = []
    failures: list[ItemFailure] = []
    for job, found in prepared:
        task = tasks[job.task]
        for position, parts in enumerate(found, start=job.start):
            if isinstance(parts, ItemFailure):
                failures.append(parts)
            else:
                waiting.append((position, task.items[position], parts))
        last = job.stop == len(task.items)
        if task.by_length:
            waiting.sort(key=lambda w: -len(w[2][-1]))  # longest first: a lack of memory shows early
        while len(waiting) >= batch_size or last:
            now, waiting = waiting[:batch_size], waiting[batch_size:]
            ends = last and not waiting
            parts = tuple(collate(list(column)) for column in zip(*(w[2] for w in now), strict=True))
            yield ForwardBatch(job.task, [w[0] for w in now], [w[1] for w in now], parts, failures, ends)
            failures = []
            if ends:
                break
