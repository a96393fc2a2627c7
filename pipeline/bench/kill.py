"""Crash test of the store on this machine and disk: writers are killed by SIGKILL, and every row is checked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.bench._kill import Score, kill_writers


def run(kills: int = 50, seed: int = 0, folder: str = "", *, progress: Callable[[str], object] = str) -> dict[str, Any]:
    """Kill ``kills`` writers at chosen steps and random moments, and return the score.

    folder: location of the temporary stores; default: the system's. ``passed`` is False if a row was lost or wrong, or
    if a store was unreadable or differs at the end; `bench` then exits with code 1.
    """
    return kill_writers(kills, seed, Path(folder) if folder else None, progress).as_dict()


def render(figures: dict[str, Any]) -> str:
    return Score(**{name: value for name, value in figures.items() if name != "passed"}).text()
