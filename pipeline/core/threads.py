"""CPU threads: the fixed number for training, and the measured fastest number for other calls."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

MARGIN = 0.9  # more threads must save a tenth of the time, so that noise does not decide
ENOUGH_SECONDS = 1.0  # repeats stop here for each candidate


def training_threads(asked: int | None = None) -> int:
    """Return ``asked``, OMP_NUM_THREADS or one. Never measured, because the number changes the rounding of sums."""
    return asked or _from_environment() or 1


@contextmanager
def cpu_threads(count: int) -> Iterator[None]:
    """Context manager that computes on ``count`` threads and restores the previous number on exit."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True)
class ThreadChoice:
    """Chosen number of threads; ``milliseconds``: best time of a step for each candidate."""

    threads: int
    milliseconds: dict[int, float]

    def __str__(self) -> str:
        chosen = f"{self.threads} CPU thread{'s' if self.threads != 1 else ''}"
        if len(self.milliseconds) < 2:
            return chosen
        timings = ", ".join(f"{n}: {ms:.1f} ms" for n, ms in self.milliseconds.items())
        return f"{chosen} (fastest step by number of them: {timings})"


def available_cpus() -> int:
    """Return the number of CPUs available to this process."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def candidates() -> tuple[int, ...]:
    """Return 1, 2, 4, ... up to the CPUs available to this process, or OMP_NUM_THREADS if that is less."""
    return doublings(min(available_cpus(), _from_environment() or available_cpus()))


def doublings(limit: int) -> tuple[int, ...]:
    """Return 1, 2, 4, ... and ``limit``."""
    return tuple(sorted({*(2**n for n in range(limit.bit_length())), limit}))


def _from_environment() -> int | None:
    """Return OMP_NUM_THREADS, or None if it is not a positive number."""
    value = os.environ.get("OMP_NUM_THREADS", "")
    return int(value) if value.isdigit() and int(value) > 0 else None


def choose_threads(step: Callable[[], object], among: Sequence[int] = (), repeats: int = 5) -> ThreadChoice:
    """Time ``step`` for each number of threads, set torch to the fastest and return the times.

    ``among=(n,)`` sets n and measures nothing.
    """
    among = tuple(sorted(among or candidates()))
    if len(among) == 1:
        torch.set_num_threads(among[0])
        return ThreadChoice(among[0], {})
    times: dict[int, float] = {}
    for threads in among:
        torch.set_num_threads(threads)
        step()  # warm-up: starts threads, fills caches
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
