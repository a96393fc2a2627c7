"""How many CPU threads a training step runs fastest on, by measurement: on a busy machine two can lose to one."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

MARGIN = 0.9  # more threads are taken only where they save a tenth: the choice should not follow noise
ENOUGH_SECONDS = 1.0  # repeats stop here for each candidate


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
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if asked.isdigit() and int(asked) > 0:
        limit = min(limit, int(asked))
    powers = [2**n for n in range(limit.bit_length()) if 2**n <= limit]
    return tuple(sorted({*powers, limit}))


def choose_threads(step: Callable[[], object], among: Sequence[int] = (), repeats: int = 5) -> ThreadChoice:
    """Time ``step`` on each number of threads, set torch to the best one and report the times.

    The number of threads may change the last digits of a sum, and with them the trained weights: record the choice
    with a run, and pin it (``among=(n,)``, which measures nothing) to repeat the run exactly.
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
