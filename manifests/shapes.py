"""Comparison of a file's tensors with those that a configuration expects: the first that does not fit is named."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def misfit(expected: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """Return a line for tensors (anything with a ``shape``) of other names or shapes than expected; "" if all fit."""
    wanted = {name: tuple(value.shape) for name, value in expected.items()}
    there = {name: tuple(value.shape) for name, value in found.items()}
    shapes = [(n, there[n], wanted[n]) for n in wanted if n in there and there[n] != wanted[n]]
    lines = [misfits(shapes)] if shapes else []
    lines += [f"{_some(wanted.keys() - there.keys())} absent"] if wanted.keys() - there.keys() else []
    lines += [f"{_some(there.keys() - wanted.keys())} unknown"] if there.keys() - wanted.keys() else []
    return "; ".join(lines)


def misfits(shapes: Iterable[tuple[str, Sequence[int], Sequence[int]]]) -> str:
    """Return one line for tensors (name, shape in the file, shape by the configuration): the first, and their count."""
    every = sorted(shapes)
    name, found, expected = every[0]
    more = f", and {len(every) - 1:,} more tensors do not fit" if len(every) > 1 else ""
    return f"tensor {name!r} is {list(found)} in the file and {list(expected)} by the configuration{more}"


def _some(names: Iterable[str]) -> str:
    every = sorted(names)
    return f"tensor {every[0]!r}" + (f" and {len(every) - 1:,} more are" if len(every) > 1 else " is")
