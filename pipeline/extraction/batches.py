"""Tasks to batches: which items share a forward pass, decided by the plan and the batch size alone.

So every way of running a task (overlapped, sequential, on another machine, with any number of workers) makes the same
batches, and with them the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from pipeline.extraction.prepare import ItemFailure
from pipeline.extraction.transfer import stack
from pipeline.extraction.work import Item

IMAGES_A_JOB = 4  # a job of a worker thread: few images, so that the window stays small and its overhead too


@dataclass(frozen=True)
class ShardTask:
    """One shard to be: its rows, in the order in which they will be written."""

    table: str
    items: Sequence[Item]

    @property
    def by_length(self) -> bool:
        """Texts are batched by length, images and pairs as they come."""
        return bool(self.items) and self.items[0].file is None


@dataclass(frozen=True)
class Job:
    """What one worker thread prepares at a time: items ``start`` to ``stop`` of a task."""

    task: int
    start: int
    stop: int


@dataclass
class ForwardBatch:
    """One forward pass: its members' positions in the task and items, and their prepared parts, one sequence a part.

    ``failures``: items of the task found bad since the last batch. ``last``: the task ends here; then there may be no
    member.
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
        """Some of its members, without its failures."""
        parts = tuple(p[start:stop] for p in self.parts)
        return ForwardBatch(self.task, self.positions[start:stop], self.items[start:stop], parts)


def jobs_of(tasks: Sequence[ShardTask]) -> Iterator[Job]:
    """The jobs of all tasks in order; a task of texts is one job, because its batches need all lengths."""
    for number, task in enumerate(tasks):
        step = len(task.items) if task.by_length else IMAGES_A_JOB
        for start in range(0, len(task.items), step):
            yield Job(number, start, min(start + step, len(task.items)))


def batches_of(
    tasks: Sequence[ShardTask],
    prepared: Iterable[tuple[Job, list[Any]]],
    batch_size: int,
    collate: Callable[[Sequence[Any]], Sequence[Any]] = lambda parts: parts,
) -> Iterator[ForwardBatch]:
    """Batches of up to ``batch_size`` items, in order, from the jobs' prepared parts (or failures). A task ends a batch.

    ``collate`` is given each part of a batch's items (all images, all texts).
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
            waiting.sort(key=lambda w: -len(w[2][-1]))  # longest first: if memory is short, it shows at once
        while len(waiting) >= batch_size or last:
            now, waiting = waiting[:batch_size], waiting[batch_size:]
            ends = last and not waiting
            parts = tuple(collate(list(column)) for column in zip(*(w[2] for w in now), strict=True))
            yield ForwardBatch(job.task, [w[0] for w in now], [w[1] for w in now], parts, failures, ends)
            failures = []
            if ends:
                break


def collate_for(device: torch.device) -> Callable[[Sequence[Any]], Sequence[Any]]:
    """Stacks what can be stacked, in pinned memory and on its way to the device where that is a GPU."""
    return lambda parts: stack(parts, device)
