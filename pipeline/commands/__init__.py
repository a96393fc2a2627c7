"""Commands of the command line. A module has the commands of one subject; ``SECTION`` is their place in --help.

Modules import click, ``_options`` and ``_shared``; a command imports its dependencies when it runs: --help is fast.
"""

from __future__ import annotations

import importlib
import pkgutil

import click

VALUES = {"integer": "N", "integer range": "N", "path": "DIR", "directory": "DIR", "file": "FILE"}  # by type
SECTIONS = ("data", "stage 1", "stage 2", "results", "look", "cache", "bench")


def sections_of(package: str) -> dict[str, list[click.Command]]:
    """Return the commands of a package by section, in the order of ``SECTIONS``, each sorted by name.

    Raises ValueError for a module whose ``SECTION`` is missing or unknown.
    """
    found: dict[str, list[click.Command]] = {section: [] for section in SECTIONS}
    for about in pkgutil.iter_modules(importlib.import_module(package).__path__):
        if about.name.startswith("_"):
            continue
        module = importlib.import_module(f"{package}.{about.name}")
        section = getattr(module, "SECTION", None)
        if section not in found:
            raise ValueError(f"{module.__name__}: SECTION is {section!r}, write one of {', '.join(SECTIONS)}")
        commands = [value for value in vars(module).values() if isinstance(value, click.Command)]
        inner = [c for group in commands if isinstance(group, click.Group) for c in group.commands.values()]
        for command in commands:
            _name_values(command)
        found[section] += [command for command in commands if command not in inner]
    return {section: sorted(commands, key=lambda c: c.name or "") for section, commands in found.items()}


def _name_values(command: click.Command) -> None:
    """Name the values of the options in --help: N, DIR, FILE, or a text or a fraction by its option (--model MODEL).

    An empty default is not shown.
    """
    for option in command.params:
        if isinstance(option, click.Option) and option.default == "":
            option.show_default = False
        if isinstance(option, click.Option) and option.metavar is None and not option.is_flag:
            own = option.opts[-1].strip("-").upper() if option.type.name.startswith(("text", "float")) else None
            option.metavar = VALUES.get(option.type.name, own)
