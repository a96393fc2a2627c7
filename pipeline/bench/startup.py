"""CPU seconds of --help and the light commands, measured from the command line."""

from __future__ import annotations

import statistics

from pipeline.bench._machine import CLI, command_seconds

COMMANDS = (("--help",), ("train", "--help"), ("ls", "specs"), ("bench", "list"))


def run(repeats: int = 7) -> dict[str, dict[str, float]]:
    """Return median CPU seconds (user + system) of each command in a new process, and of an empty interpreter."""
    commands = {"python -c pass": ["-c", "pass"]} | {" ".join(c): [str(CLI), *c] for c in COMMANDS}
    taken: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(repeats):
        for name, arguments in commands.items():
            taken[name].append(command_seconds(*arguments)[1])
    return {name: {"cpu_s": statistics.median(values)} for name, values in taken.items()}


def render(figures: dict[str, dict[str, float]]) -> str:
    width = max(map(len, figures))
    return "\n".join(f"{name:{width}}  {value['cpu_s']:.3f} s CPU" for name, value in figures.items())
