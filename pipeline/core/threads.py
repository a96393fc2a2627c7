"""CPU threads: the fixed number that a training uses, and the number on which a call runs fastest, by measurement."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

MARGIN = 0.9  # more threads are taken only where they save a tenth: the choice should not follow noise
ENOUGH_SECONDS = 1.0  # repeats stop here for each candidate


def training_threads(asked: int | None = None) -> int:
    """``asked``, or OMP_NUM_THREADS, or one: another number rounds sums differently, so none is chosen by measurement."""
    return asked or _from_environment() or 1


@contextmanager
def cpu_threads(count: int) -> Iterator[None]:
    """Compute on ``count`` threads inside; the process's number is back afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True)
class ThreadChoice:
    """``threads`` was chosen among the candidates; ``milliseconds`` is the best time of a step for each."""

    threads: int
    milliseconds: dict[int, float]

    def __str__(self) -> str:
        if len(self.milliseconds) < 2:
            return f"{self.threads} CPU thread{'s' if self.threads != 1 else ''}"
        timings = ", ".join(f"{n}: {ms:.1f} ms" for n, ms in self.milliseconds.items())
        return (
            f"{self.threads} CPU thread{'s' if self.threads != 1 else ''} (fastest step by number of them: {timings})"
        )


def candidates() -> tuple[int, ...]:
    """1, 2, 4, ... up to the CPUs this process may use, or OMP_NUM_THREADS where that is less."""
    limit = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit = min(limit, _from_environment() or limit)
    powers = [2**n for n in range(limit.bit_length()) if 2**n <= limit]
    return tuple(sorted({*powers, limit}))


def _from_environment() -> int | None:
    """OMP_NUM_THREADS, or None where it is not set to a positive number."""
    value = os.environ.get("OMP_NUM_THREADS", "")
    return int(value) if value.isdigit() and int(value) > 0 else None


def choose_threads(step: Callable[[], object], among: Sequence[int] = (), repeats: int = 5) -> ThreadChoice:
    """Time ``step`` on each number of threads, set torch to the best one and report the times.

    ``among=(n,)`` sets n and measures nothing.
    """
    among = tuple(sorted(among or candidates()))
    if len(among) == 1:
        torch.set_num_threads(among[0])
        return ThreadChoice(among[0], {})
    times: dict[int, float] = {}
    for threads in among:
        torch.set_num_threads(threads)
        step()  # starts the threads, fills the caches
        times[threads] = min(_timings(step, repeats)) * 1e3
    best = among[0]
    for threads in among[1:]:
        if times[threads] < MARGIN * times[best]:
            best = threads
    torch.set_num_threads(best)
    return ThreadChoice(best, times)


def _timings(step: Callable[[], object], repeats: int) -> list[float]:
    found: list[float] = []
    while len(found) < repeats and sum(found) < ENOUGH_SECONDS:
        started = time.perf_counter()
        step()
        found.append(time.perf_counter() - started)
    return found
