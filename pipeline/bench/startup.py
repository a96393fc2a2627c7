"""CPU seconds of --help and the light commands, measured from the command line."""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
from pathlib import Path

CLI = Path(__file__).resolve().parents[2] / "cli.py"
COMMANDS = (("--help",), ("train", "--help"), ("ls", "specs"), ("bench", "list"))


def run(repeats: int = 7) -> dict[str, dict[str, float]]:
    """Return median CPU seconds (user + system) of each command in a new process, and of an empty interpreter."""
    commands = {"python -c pass": ["-c", "pass"]} | {" ".join(c): [str(CLI), *c] for c in COMMANDS}
    taken: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(repeats):
        for name, arguments in commands.items():
            taken[name].append(_cpu_seconds(arguments))
    return {name: {"cpu_s": statistics.median(values)} for name, values in taken.items()}


def _cpu_seconds(arguments: list[str]) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def render(figures: dict[str, dict[str, float]]) -> str:
    width = max(map(len, figures))
    return "\n".join(f"{name:{width}}  {value['cpu_s']:.3f} s CPU" for name, value in figures.items())
