"""Commands of the command line: one module per command, whose ``command`` is the click command.

Modules here import click and ``_shared`` only; a command imports its dependencies when it runs, so that --help is
fast. A folder is a group, and its modules are the subcommands. ``SECTION`` of a module places its command in --help.
"""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType

import click

VALUES = {"integer": "N", "integer range": "N", "path": "DIR", "directory": "DIR", "file": "FILE"}  # by type
SECTIONS = ("data", "stage 1", "stage 2", "results", "look", "cache", "bench")


def commands_of(package: str) -> list[click.Command]:
    """Return the ``command`` of every module of a package, sorted by module name."""
    return [_named(module.command) for module in _modules(package)]


def sections_of(package: str) -> dict[str, list[click.Command]]:
    """Return the commands of a package by section, in the order of ``SECTIONS``.

    Raises ValueError for a module whose ``SECTION`` is missing or unknown.
    """
    found: dict[str, list[click.Command]] = {section: [] for section in SECTIONS}
    for module in _modules(package):
        section = getattr(module, "SECTION", None)
        if section not in found:
            raise ValueError(f"{module.__name__}: SECTION is {section!r}, write one of {', '.join(SECTIONS)}")
        found[section].append(_named(module.command))
    return found


def _modules(package: str) -> list[ModuleType]:
    path = importlib.import_module(package).__path__
    names = sorted(m.name for m in pkgutil.iter_modules(path) if not m.name.startswith("_"))
    return [importlib.import_module(f"{package}.{name}") for name in names]


def _named(command: click.Command) -> click.Command:
    """Name the values of the options in --help: N, DIR, FILE, or a text or a fraction by its option (--model MODEL)."""
    for inner in command.commands.values() if isinstance(command, click.Group) else ():
        _named(inner)
    for option in command.params:
        if isinstance(option, click.Option) and option.metavar is None and not option.is_flag:
            own = option.opts[-1].strip("-").upper() if option.type.name.startswith(("text", "float")) else None
            option.metavar = VALUES.get(option.type.name, own)
    return command
