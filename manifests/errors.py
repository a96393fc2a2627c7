"""Errors that name the value, the place and the next step, and carry the exit code of the command line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


class FashionNTMError(Exception):
    """Base of every error this project raises on purpose. ``exit_code`` is what the command returns."""

    exit_code = 1


class IncompleteError(FashionNTMError):
    """Something a command needs has not been computed yet, or was computed for another fingerprint."""

    exit_code = 3


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a user's file: where it is, what was found, and what to do about it."""

    file: str
    place: str  # "line 12", "key training.epochs", "session 31 turn 2", or "" for the whole file
    what: str
    fix: str = ""

    def __str__(self) -> str:
        where = f"{self.file}: {self.place}" if self.place else self.file
        return f"{where}: {self.what}" + (f" ({self.fix})" if self.fix else "")


class ManifestError(FashionNTMError, ValueError):
    """A spec or dataset file is invalid. Carries every problem found, not only the first."""

    exit_code = 4

    def __init__(self, problems: Iterable[Problem]):
        self.problems = tuple(problems)
        count = len(self.problems)
        head = f"{count} problem{'s' if count != 1 else ''} found"
        super().__init__("\n".join([head, *(f"  {p}" for p in self.problems)]))


class Problems:
    """Gathers problems while a file is read, so that a user sees all of them at once.

    >>> problems = Problems("sessions.jsonl")
    >>> problems.add("line 3", "no 'target'", "every session needs one")
    >>> problems.raise_if_any()
    Traceback (most recent call last):
    manifests.errors.ManifestError: ...
    """

    def __init__(self, file: str | Path = ""):
        self.file = str(file)
        self.found: list[Problem] = []

    def add(self, place: str, what: str, fix: str = "", file: str | Path | None = None) -> None:
        self.found.append(Problem(str(file if file is not None else self.file), place, what, fix))

    def raise_if_any(self) -> None:
        if self.found:
            raise ManifestError(self.found)


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint such as ``did you mean 'caption'? known: caption, clip`` for an unknown name."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean '{close[0]}'? " if close else ""
    return f"{hint}known: {', '.join(known) or 'none'}"
