"""What the command line offers: one module a command, whose ``command`` is the click command. Add a command: one file.

Modules here import click and ``_shared`` alone; what a command needs is imported when it runs, so that --help is
instant. A folder is a group: its modules are the sub-commands.
"""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType

import click


def commands_of(package: ModuleType | str) -> list[click.Command]:
    """The ``command`` of every module of a package of commands, by module name."""
    if isinstance(package, str):
        package = importlib.import_module(package)
    names = sorted(m.name for m in pkgutil.iter_modules(package.__path__) if not m.name.startswith("_"))
    return [importlib.import_module(f"{package.__name__}.{name}").command for name in names]
