"""Command lines that commands and errors print, and the defaults of the folders that they name.

A default of --data or --out comes from the environment (FASHION_NTM_DATA, FASHION_NTM_OUT), else from the file
``fashion-ntm.toml`` or the table ``[tool.fashion-ntm]`` of ``pyproject.toml`` in the current folder, else it is built in.
"""

from __future__ import annotations

import os
import shlex
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from manifests.errors import ManifestError, Problem, nearest

PROGRAM = "fashion-ntm"
BUILT_IN = {"data": Path("data"), "out": Path("out")}
FILES = (("fashion-ntm.toml", ()), ("pyproject.toml", ("tool", "fashion-ntm")))


class Default(NamedTuple):
    """Default of an option. source: where it comes from, or "" if it is built in."""

    folder: Path
    source: str


def variable(name: str) -> str:
    """Return the environment variable of option ``--name``."""
    return f"FASHION_NTM_{name.upper()}"


def default_folder(name: str) -> Default:
    """Return the default of ``--data`` or ``--out``. Raises ManifestError for a file that is not valid."""
    if value := os.environ.get(variable(name)):
        return Default(Path(value), variable(name))
    for file, path in FILES:
        values = _table(Path(file), path)
        if name in values:
            where = f"[{'.'.join(path)}] in {file}" if path else file
            return Default(Path(values[name]), where)
    return Default(BUILT_IN[name], "")


def _table(file: Path, path: tuple[str, ...]) -> dict[str, str]:
    """Return the defaults in a file; {} if it does not exist or has no such table."""
    try:
        values: Any = tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ManifestError([Problem(str(file), "", f"cannot be read: {error}", "correct or remove it")]) from None
    for key in path:
        values = values.get(key, {}) if isinstance(values, dict) else {}
    problems = []
    for key, value in values.items():
        if key not in BUILT_IN:
            problems.append(Problem(str(file), key, "unknown default", nearest(key, tuple(BUILT_IN))))
        elif not isinstance(value, str) or not value:
            problems.append(Problem(str(file), key, f"{value!r} is not a folder", f'write {key} = "DIR"'))
    if problems:
        raise ManifestError(problems)
    return values


def command_line(*words: str) -> str:
    """Return the program's name and ``words``, quoted for a shell."""
    return shlex.join([PROGRAM, *words])


def repeated_options(overrides: Sequence[str], data: Path, out: Path) -> list[str]:
    """Return --set, --data and --out of a call as words for the commands that it prints."""
    return [word for override in overrides for word in ("--set", override)] + folder_options(data, out)


def folder_options(data: Path, out: Path) -> list[str]:
    """Return --data and --out as words of a command line, as far as the built-in defaults do not give them."""
    given = {"data": data, "out": out}
    asked = [name for name in given if given[name] != BUILT_IN[name] or default_folder(name).source]
    return [word for name in asked for word in (f"--{name}", str(given[name]))]
