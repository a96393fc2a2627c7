"""Where an extraction stands: rows done, failures and seconds per stage; filled by the engine, read by the display."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

STAGES = ("hash", "decode", "tokenise", "stack", "model", "write")
_IN_WORKERS = ("decode", "tokenise")  # their seconds add up over the worker threads
_ALONE = ("hash", "write")  # done by the coordinator of a cluster


@dataclass
class Meter:
    """Safe to fill from several threads. ``seconds``: by stage."""

    workers: int = 1  # threads that prepare, on each machine
    machines: int = 1  # worker processes; they share all stages but hashing and writing
    total: int = 0  # rows to make
    done: int = 0
    failed: int = 0
    unusable: int = 0  # items that failed before any work, not part of total
    now: str = "starting"  # what is being worked on
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    started: float = field(default_factory=time.perf_counter)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @contextmanager
    def time(self, stage: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self.add(stage, time.perf_counter() - began)

    def add(self, stage: str, seconds: float) -> None:
        with self._lock:
            self.seconds[stage] += seconds

    def restart(self) -> None:
        """Rates count from here: hashing and loading are not extraction."""
        self.started = time.perf_counter()

    @property
    def rate(self) -> float:
        """Rows a second since the first one was begun."""
        return (self.done + self.failed) / max(time.perf_counter() - self.started, 1e-9)

    @property
    def eta(self) -> float | None:
        """Seconds left at the present rate; None before there is one."""
        left = self.total - self.done - self.failed
        return left / self.rate if self.rate > 0 and self.done else None

    @property
    def slowest(self) -> str:
        """The stage that took the most time, worker threads' time divided among them."""
        share = {s: t / self.hands(s) for s, t in self.seconds.items() if s != "hash"}
        return max(share, key=lambda s: share[s]) if any(share.values()) else "none"

    def hands(self, stage: str) -> int:
        """How many threads work on a stage at the same time."""
        return max(1, self.workers if stage in _IN_WORKERS else 1) * (self.machines if stage not in _ALONE else 1)
