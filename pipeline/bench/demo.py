"""Seconds of the demo for a new user: of the first call in an empty folder, and of a second one."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

CLI = Path(__file__).resolve().parents[2] / "cli.py"


def run(device: str = "auto") -> dict[str, float]:
    """Return wall and CPU seconds of two successive demos in new processes and a new folder."""
    import resource

    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in ("first", "second"):
            before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
            command = [sys.executable, str(CLI), "demo", "--out", folder, "--device", device]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            figures[f"{name}_wall_s"] = time.perf_counter() - began
            figures[f"{name}_cpu_s"] = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return figures


def render(figures: dict[str, float]) -> str:
    return "\n".join(
        f"{name:6} demo  {figures[f'{name}_wall_s']:6.1f} s wall  {figures[f'{name}_cpu_s']:6.1f} s CPU"
        for name in ("first", "second")
    )
