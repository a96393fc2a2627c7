"""Commands of the command line: one module per command, whose ``command`` is the click command.

Modules here import click and ``_shared`` only; a command imports its dependencies when it runs, so that --help is
fast. A folder is a group, and its modules are the subcommands.
"""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType

import click


def commands_of(package: ModuleType | str) -> list[click.Command]:
    """Return the ``command`` of every module of a package, sorted by module name."""
    if isinstance(package, str):
        package = importlib.import_module(package)
    names = sorted(m.name for m in pkgutil.iter_modules(package.__path__) if not m.name.startswith("_"))
    return [importlib.import_module(f"{package.__name__}.{name}").command for name in names]
