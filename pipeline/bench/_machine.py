"""The measuring machine: a description to publish, its load during a measurement, and the seconds of a command."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path

CLI = Path(__file__).resolve().parents[2] / "cli.py"
_STAT = Path("/proc/stat")
_USER, _NICE, _SYSTEM, _IRQ, _SOFTIRQ, _STEAL = 0, 1, 2, 5, 6, 7  # its columns


def machine() -> dict[str, str]:
    """Return processor, cores, accelerator and versions, without host name or paths."""
    import torch

    found = {"processor": _processor(), "cores": str(os.cpu_count()), "python": platform.python_version()}
    found |= {"torch": torch.__version__, "threads": str(torch.get_num_threads())}
    return found | ({"device": torch.cuda.get_device_name()} if torch.cuda.is_available() else {})


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


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
        wall, self.cpu, busy, stolen = (after - before for after, before in zip(_now(), self._began, strict=True))
        if _STAT.exists():
            cores = (os.cpu_count() or 1) * max(wall, 1e-9)
            self.others, self.host = max(0.0, (busy - self.cpu) / cores), stolen / cores


def _now() -> tuple[float, float, float, float]:
    """Return seconds of wall time, of this process's CPU time, of all processes' CPU time, and stolen by the host."""
    own = sum(_used(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    busy = stolen = 0.0
    if _STAT.exists():
        ticks = [int(value) for value in _STAT.read_text(encoding="ascii").split("\n", 1)[0].split()[1:]]
        second = os.sysconf("SC_CLK_TCK")
        busy = sum(ticks[n] for n in (_USER, _NICE, _SYSTEM, _IRQ, _SOFTIRQ)) / second
        stolen = ticks[_STEAL] / second
    return time.perf_counter(), own, busy, stolen


def _used(who: int) -> float:
    used = resource.getrusage(who)
    return used.ru_utime + used.ru_stime


def command_seconds(*arguments: str) -> tuple[float, float]:
    """Run this Python with ``arguments``; return the wall and CPU seconds (user + system) of its process."""
    before, began = _used(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - began, _used(resource.RUSAGE_CHILDREN) - before
