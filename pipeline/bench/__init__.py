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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from manifests.errors import ManifestError, Problem, nearest
from pipeline.bench._machine import machine


def names() -> tuple[str, ...]:
    return tuple(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))


def run_bench(name: str, file: Path | None = None, overrides: Sequence[str] = ()) -> str:
    """Run benchmark ``name`` (or list all), write its figures to ``file`` as JSON, and return its text.

    ``overrides``: ``size=value`` for the keyword arguments of the benchmark's ``run``. A ``run`` with a parameter ``save``
    receives a function that writes the figures so far. Raises ManifestError for an unknown benchmark or size.
    """
    if name == "list":
        return "\n".join(f"{n:10} {_first_line(n)}" for n in names())
    if name not in names():
        raise ManifestError([Problem("bench", "", f"unknown benchmark {name!r}", nearest(name, names()))])
    module = importlib.import_module(f"{__name__}.{name}")
    sizes = _sizes(module.run, overrides)
    result: dict[str, Any] = {"benchmark": name, "machine": machine(), "sizes": sizes}

    def save(figures: Any) -> None:
        result["figures"] = figures
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")

    keeps = {"save": save} if "save" in inspect.signature(module.run).parameters else {}
    save(module.run(**sizes, **keeps))
    about = ", ".join(f"{key} {value}" for key, value in result["machine"].items())
    return f"{module.render(result['figures'])}\n\nmachine: {about}"


def _sizes(function: Any, overrides: Sequence[str]) -> dict[str, Any]:
    known = [name for name in inspect.signature(function).parameters if name != "save"]
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


def _first_line(name: str) -> str:
    source = Path(__file__).with_name(f"{name}.py").read_text(encoding="utf-8")  # not imported, so that listing is fast
    return (ast.get_docstring(ast.parse(source)) or "").split("\n")[0]
