"""Seconds of the demo for a new user: of the first call in an empty folder, and of a second one."""

from __future__ import annotations

import tempfile

from pipeline.bench._machine import CLI, command_seconds


def run(device: str = "auto") -> dict[str, float]:
    """Return wall and CPU seconds of two successive demos in new processes and a new folder."""
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in ("first", "second"):
            wall, cpu = command_seconds(str(CLI), "demo", "--out", folder, "--device", device)
            figures |= {f"{name}_wall_s": wall, f"{name}_cpu_s": cpu}
    return figures


def render(figures: dict[str, float]) -> str:
    return "\n".join(
        f"{name:6} demo  {figures[f'{name}_wall_s']:6.1f} s wall  {figures[f'{name}_cpu_s']:6.1f} s CPU"
        for name in ("first", "second")
    )
