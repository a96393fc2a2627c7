"""Progress counters of an extraction: rows, failures, seconds per stage; set by the engine, read by the display."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

STAGES = ("hash", "decode", "tokenise", "stack", "model", "write")
_IN_WORKERS = ("decode",)  # seconds are summed over the decoding workers
_ALONE = ("hash", "write")  # done by the coordinator of a cluster


@dataclass
class Meter:
    """Thread-safe progress counters. ``seconds``: by stage."""

    workers: int = 1  # processes that decode images, per machine
    machines: int = 1  # worker processes; they run all stages except hashing and writing
    total: int = 0  # rows to compute
    done: int = 0
    failed: int = 0
    unusable: int = 0  # items without content, not part of total
    now: str = "starting"  # current activity
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    started: float = field(default_factory=time.perf_counter)
    notes: list[str] = field(default_factory=list)  # events that the user should know
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

    def note(self, text: str) -> None:
        """Add a note, once."""
        with self._lock:
            if text not in self.notes:
                self.notes.append(text)

    def restart(self) -> None:
        """Start the clock of the rates, after hashing and loading."""
        self.started = time.perf_counter()

    @property
    def rate(self) -> float:
        """Rows per second since the first one was started."""
        return (self.done + self.failed) / max(time.perf_counter() - self.started, 1e-9)

    @property
    def eta(self) -> float | None:
        """Seconds left at the current rate; None without a rate."""
        left = self.total - self.done - self.failed
        return left / self.rate if self.rate > 0 and self.done else None

    @property
    def slowest(self) -> str:
        """Stage with the most time; time of decoding workers is divided by their number."""
        share = {s: t / self.concurrent(s) for s, t in self.seconds.items() if s != "hash"}
        return max(share, key=lambda s: share[s]) if any(share.values()) else "none"

    def concurrent(self, stage: str) -> int:
        """Return the number of workers of a stage that run concurrently."""
        return max(1, self.workers if stage in _IN_WORKERS else 1) * (self.machines if stage not in _ALONE else 1)
