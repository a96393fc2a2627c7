"""Benchmarks of the ``bench`` command: one module each, with ``run(...) -> dict`` and ``render(dict) -> str``.

Figures are medians of interleaved runs, so that ratios are reliable on a noisy machine. No benchmark is a test.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import pkgutil
import tomllib
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from manifests.errors import ManifestError, Problem, nearest
from pipeline.bench._machine import machine

_TOOLS = ("save", "progress")  # parameters of a benchmark's ``run`` that are functions, not sizes


def names() -> tuple[str, ...]:
    return tuple(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))


def measure(
    name: str, file: Path | None = None, overrides: Sequence[str] = (), progress: Callable[[str], object] = str
) -> tuple[dict[str, Any], str]:
    """Run benchmark ``name``; return its record (benchmark, machine, sizes, figures) and its text.

    ``file``: where the record is written as JSON. ``overrides``: ``size=value`` for the keyword arguments of the
    benchmark's ``run``. A ``run`` with a parameter ``save`` receives a function that writes the figures so far, one
    with a parameter ``progress`` a function that shows a line. Raises ManifestError for an unknown benchmark or size.
    """
    _check(name)
    module = importlib.import_module(f"{__name__}.{name}")
    sizes = _sizes(module.run, overrides)
    result: dict[str, Any] = {"benchmark": name, "machine": machine(), "sizes": sizes}

    def save(figures: Any) -> None:
        result["figures"] = figures
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")

    taken = inspect.signature(module.run).parameters
    tools = {key: tool for key, tool in (("save", save), ("progress", progress)) if key in taken}
    save(module.run(**sizes, **tools))
    about = ", ".join(f"{key} {value}" for key, value in result["machine"].items())
    return result, f"{module.render(result['figures'])}\n\nmachine: {about}"


def _check(name: str) -> None:
    if name not in names():
        raise ManifestError([Problem("bench", "", f"unknown benchmark {name!r}", nearest(name, names()))])


def selected(what: str, given: str | Sequence[str], known: Collection[str]) -> list[str]:
    """Return the names of ``given``, a list or a text with commas. Raise ManifestError for one that is not ``known``."""
    names = [name.strip() for name in given.split(",")] if isinstance(given, str) else list(given)
    for name in names:
        if name not in known:
            raise ManifestError([Problem("--set", f"{what}s", f"unknown {what} {name!r}", nearest(name, known))])
    return names


def _sizes(function: Any, overrides: Sequence[str]) -> dict[str, Any]:
    known = [name for name in inspect.signature(function).parameters if name not in _TOOLS]
    sizes: dict[str, Any] = {}
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator or key not in known:
            raise ManifestError([Problem("--set", override, f"unknown size {key!r}", nearest(key, known))])
        try:
            sizes[key] = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            sizes[key] = text
    return sizes


def summaries() -> dict[str, str]:
    """Return the first line of each benchmark's docstring, without importing it."""
    return {name: (ast.get_docstring(_source(name)) or "").split("\n")[0] for name in names()}


def sizes_of(name: str) -> dict[str, str]:
    """Return a benchmark's sizes and default source texts, without importing it. Raises ManifestError if unknown."""
    _check(name)
    run = next(n for n in _source(name).body if isinstance(n, ast.FunctionDef) and n.name == "run")
    positional, keyword = [*run.args.posonlyargs, *run.args.args], run.args.kwonlyargs
    given = [None] * (len(positional) - len(run.args.defaults)) + [*run.args.defaults, *run.args.kw_defaults]
    pairs = zip([*positional, *keyword], given, strict=True)
    return {a.arg: "" if default is None else ast.unparse(default) for a, default in pairs if a.arg not in _TOOLS}


def _source(name: str) -> ast.Module:
    return ast.parse(Path(__file__).with_name(f"{name}.py").read_text(encoding="utf-8"))
