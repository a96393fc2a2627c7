"""Errors that name the value, the place and the next step, and carry the exit code of the command line."""

from __future__ import annotations

import difflib
import errno
import re
import shutil
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

SHOWN = 20  # lines for each kind of problem
_FEW = 3  # problems that differ only in their place are listed up to this many


class FashionNTMError(Exception):
    """Base of all errors that this project raises on purpose. ``exit_code``: exit code of the command."""

    exit_code = 1


class IncompleteError(FashionNTMError):
    """An input of a command is not computed yet, or was computed for another fingerprint."""

    exit_code = 3


@dataclass(frozen=True)
class Problem:
    """A problem in a user's file: its place, what was found, and a fix."""

    file: str
    place: str  # "line 12", "key training.epochs", "session 31 turn 2", or "" for the whole file
    what: str
    fix: str = ""

    def __str__(self) -> str:
        where = f"{self.file}: {self.place}" if self.place else self.file
        return f"{where}: {self.what}" + (f" ({self.fix})" if self.fix else "")


def disk_problem(error: OSError, path: Path | None = None) -> str:
    """Return ``PATH: reason``, with needed and free space on a full disk. ``path``: instead of the error's own.

    ``error.needed`` (bytes) is set by ``cache.files.replace_atomically``.
    """
    place = path or error.filename
    text = f"{place}: {error.strerror or error}" if place else str(error.strerror or error)
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return text
    needed = f"{error.needed:,} bytes needed, " if hasattr(error, "needed") else ""
    free = next((shutil.disk_usage(p).free for p in _folders(place) if p.is_dir()), None) if place else None
    return text + ("" if free is None else f" ({needed}{free:,} bytes free)")


def _folders(place: str | Path) -> Sequence[Path]:
    path = Path(str(place)).absolute()
    return (path, *path.parents)


def advice(error: OSError, again: str = "run the same command again") -> str:
    """Return the next step after a failed read or write: free space or another folder, then ``again``."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"free space on that disk, and {again}"
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return f"make it accessible, or name another folder, and {again}"
    if isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError):
        return f"check the path, and {again}"
    return again


class ManifestError(FashionNTMError, ValueError):
    """A spec or dataset file is invalid. Carries every problem found, not only the first."""

    exit_code = 4

    def __init__(self, problems: Iterable[Problem]):
        self.problems = tuple(problems)
        count = len(self.problems)
        head = f"{count:,} problem{'s' if count != 1 else ''} found"
        super().__init__("\n".join([head, *(f"  {line}" for line in problem_lines(self.problems))]))


def problem_lines(problems: Sequence[Problem]) -> Iterator[str]:
    """Format one line per problem, in order of first appearance; at most ``SHOWN`` per kind, followed by a count.

    Problems that differ only in the numbers of their place (one unknown key on every line) share one line.
    """
    kinds: dict[tuple[str, str, str], dict[tuple[str, str, str], list[Problem]]] = defaultdict(dict)
    for p in problems:
        kind = (p.file, kind_of(p.what), kind_of(p.fix))
        kinds[kind].setdefault((re.sub(r"\d+", "#", p.place), p.what, p.fix), []).append(p)
    for alike in kinds.values():
        lines = [line for same in alike.values() for line in _folded(same)]
        yield from lines[:SHOWN]
        if len(lines) > SHOWN:
            yield f"... and {len(lines) - SHOWN:,} more of this kind"


def _folded(same: list[Problem]) -> list[str]:
    if len(same) <= _FEW:
        return [str(p) for p in same]
    return [f"{same[0]}; the same {len(same) - 1:,} more times, the last at {same[-1].place or 'the same place'}"]


@lru_cache(maxsize=4096)
def kind_of(text: str) -> str:
    """Return ``text`` without the parts that vary within one kind of problem: values, quoted names and numbers."""
    text = re.sub(r"^found .*", "found", text, flags=re.DOTALL)
    return re.sub(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|\d[\d,.]*", "#", text)


class Problems:
    """Collector of problems while a file is read, so that a user sees all of them at once.

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


def most_frequent(reasons: Iterable[str]) -> str:
    """Return the first reason of the most frequent kind, with its share: ``318 of 324: the file is empty``; "" for none.

    Reasons that differ only in quoted names and numbers are of one kind.
    """
    kinds: dict[str, list[str]] = defaultdict(list)
    for reason in reasons:
        kinds[kind_of(reason)].append(reason)
    if not kinds:
        return ""
    found, of = max(kinds.values(), key=len), sum(map(len, kinds.values()))
    return found[0] if of == 1 else f"{len(found):,} of {of:,}: {found[0]}"


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a hint such as ``did you mean 'caption'? known: caption, clip`` for an unknown name."""
    return _nearest(name, tuple(sorted(known)))


@lru_cache(maxsize=1024)  # an unknown key may recur on every line of a file
def _nearest(name: str, known: tuple[str, ...]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean '{close[0]}'? " if close else ""
    return f"{hint}known: {', '.join(known) or 'none'}"
