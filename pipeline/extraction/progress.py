"""Progress of an extraction: counters set by the engine, and their display on stderr."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal, TextIO

STAGES = ("hash", "decode", "tokenise", "stack", "model", "write")
Mode = Literal["auto", "silent"]
HEARTBEAT = 10.0  # seconds


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
        with self._lock:
            if text not in self.notes:
                self.notes.append(text)

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
    def busy(self) -> dict[str, float]:
        """Seconds by stage after hashing, divided by the number of workers that run the stage concurrently."""
        decoding, machines = max(1, self.workers), self.machines
        workers = {"decode": decoding * machines, "write": 1}  # the coordinator of a cluster writes
        return {s: t / workers.get(s, machines) for s, t in self.seconds.items() if s != "hash"}

    @property
    def slowest(self) -> str:
        """Stage with the most busy time; "none" before any."""
        return max(self.busy, key=lambda s: self.busy[s]) if any(self.busy.values()) else "none"


class Progress:
    """Base class, shows nothing. Call ``start`` once, ``update`` after each batch, and ``stop`` in any case."""

    def start(self, meter: Meter) -> None:
        self.meter, self._told = meter, 0

    def new_notes(self) -> list[str]:
        """Return the notes of the meter that were not returned before."""
        found = self.meter.notes[self._told :]
        self._told += len(found)
        return found

    def update(self) -> None:
        """Show the current meter."""

    def stop(self) -> None:
        """End the display."""


def make_progress(mode: Mode | Progress = "auto", stream: TextIO | None = None) -> Progress:
    """Return a display. ``auto``: live on a terminal, else one line every ten seconds. ``stream``: default stderr."""
    if mode == "silent" or isinstance(mode, Progress):
        return Progress() if mode == "silent" else mode
    stream = stream or sys.stderr
    return Live(stream) if stream.isatty() else Lines(stream)


def line(meter: Meter) -> str:
    """Format ``image  1,200/3,000 rows  2 failed  85.1 rows/s  0:21 left  slowest: decode``."""
    failed = f"  {meter.failed + meter.unusable:,} failed" if meter.failed + meter.unusable else ""
    if not meter.total:
        return f"{meter.now}{failed}"
    if not meter.done + meter.failed:  # no rate yet; on a cluster each worker first loads the model
        waited = clock(time.perf_counter() - meter.started)
        return f"{meter.now:6}  0/{meter.total:,} rows{failed}  no rows yet after {waited}"
    return (
        f"{meter.now:6}  {meter.done + meter.failed:,}/{meter.total:,} rows{failed}  {meter.rate:,.1f} rows/s"
        f"  {clock(meter.eta)} left  slowest: {meter.slowest}"
    )


class Lines(Progress):
    """One line every ``interval`` seconds, from a separate thread, so that slow batches do not delay it."""

    def __init__(self, stream: TextIO, interval: float = HEARTBEAT):
        self.stream, self.interval = stream, interval
        self._over = threading.Event()

    def start(self, meter: Meter) -> None:
        super().start(meter)
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._thread.start()

    def _beat(self) -> None:
        while not self._over.wait(self.interval):
            self._tell()
            print(f"extract: {line(self.meter)}", file=self.stream, flush=True)

    def _tell(self) -> None:
        for note in self.new_notes():
            print(f"extract: {note}", file=self.stream, flush=True)

    def stop(self) -> None:
        self._over.set()
        self._thread.join()
        self._tell()


class Live(Progress):
    """Progress bar with rate, time left and the slowest stage."""

    def __init__(self, stream: TextIO):
        self.stream = stream

    def start(self, meter: Meter) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as Bar

        super().start(meter)
        columns = (TextColumn("{task.fields[line]}"), BarColumn(20))
        self._bar = Bar(*columns, console=Console(file=self.stream), transient=True)
        self._task = self._bar.add_task("extract", total=None, line=line(meter))
        self._bar.start()

    def update(self) -> None:
        for note in self.new_notes():
            self._bar.console.print(f"extract: {note}")
        done = self.meter.done + self.meter.failed
        self._bar.update(self._task, completed=done, total=self.meter.total or None, line=line(self.meter))

    def stop(self) -> None:
        self._bar.stop()


def clock(seconds: float | None) -> str:
    if seconds is None:
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
