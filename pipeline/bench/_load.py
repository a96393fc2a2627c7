"""Load of the machine during a measurement, and the seconds of a command in a new process."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from pathlib import Path

CLI = Path(__file__).resolve().parents[2] / "cli.py"
_STAT = Path("/proc/stat")
_USER, _NICE, _SYSTEM, _IRQ, _SOFTIRQ, _STEAL = 0, 1, 2, 5, 6, 7  # its columns


class Load:
    """Context manager that sets ``cpu``, seconds of this process and of its ended children; and ``others`` and ``host``,
    the shares of all cores used by other processes and by the host, None if not available (not Linux)."""

    cpu = 0.0
    others: float | None = None
    host: float | None = None

    def __enter__(self) -> Load:
        self._began = _now()
        return self

    def __exit__(self, *error: object) -> None:
        wall, cpu, busy, stolen = (after - before for after, before in zip(_now(), self._began, strict=True))
        self.cpu = cpu
        if _STAT.exists():
            cores = (os.cpu_count() or 1) * max(wall, 1e-9)
            self.others, self.host = max(0.0, (busy - cpu) / cores), stolen / cores


def _now() -> tuple[float, float, float, float]:
    """Return seconds of wall time, of this process's CPU time, of all processes' CPU time, and stolen by the host."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    own = sum(u.ru_utime + u.ru_stime for u in used)
    busy = stolen = 0.0
    if _STAT.exists():
        ticks = [int(value) for value in _STAT.read_text(encoding="ascii").split("\n", 1)[0].split()[1:]]
        second = os.sysconf("SC_CLK_TCK")
        busy = sum(ticks[n] for n in (_USER, _NICE, _SYSTEM, _IRQ, _SOFTIRQ)) / second
        stolen = ticks[_STEAL] / second
    return time.perf_counter(), own, busy, stolen


def command_seconds(*arguments: str) -> tuple[float, float]:
    """Run this Python with ``arguments``; return the wall and CPU seconds (user + system) of its process."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
