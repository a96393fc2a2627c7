"""Load of the machine during a measurement: other processes, and the host of a virtual machine."""

from __future__ import annotations

import os
import resource
import time
from pathlib import Path

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
