"""Registry of parts by file name: each module of a package defines exactly one class of the package's kind.

Modules of other installed packages are found by entry points (``docs/bring-your-own-model.md``).
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import sys
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType
from typing import Generic, TypeVar

from manifests.errors import ManifestError, Problem, nearest

T = TypeVar("T")


@lru_cache(maxsize=64)
def _entry_points(group: str, _: tuple[str, ...]) -> tuple[EntryPoint, ...]:
    """Return the entry points of ``group``; the second argument, sys.path, is part of the cache key."""
    return tuple(entry_points(group=group))


class Registry(Generic[T]):
    """Names and classes of the modules of ``package`` (``base`` and names with a leading underscore left out).

    To add a part, add a file, or install a package with an entry point in the group ``fashion_ntm.<parts>``, the last
    part of the package's name. Modules are imported on first use.
    """

    def __init__(self, package: str, base: type[T], kind: str):
        self.package, self.base, self.kind = package, base, kind
        self.group = f"fashion_ntm.{package.rsplit('.', 1)[-1]}"

    def names(self) -> tuple[str, ...]:
        """Return the names of all parts, sorted: the project's own, and those of plugins."""
        return tuple(sorted({*self._own(), *self.plugins()}))

    def _own(self) -> set[str]:
        path = importlib.import_module(self.package).__path__
        found = (m.name for m in pkgutil.iter_modules(path))
        return {n for n in found if n != "base" and not n.startswith("_")}

    def plugins(self) -> dict[str, EntryPoint]:
        """Return the entry points of other packages by name; a name of the project's own is not replaced."""
        own = self._own()
        return {point.name: point for point in _entry_points(self.group, tuple(sys.path)) if point.name not in own}

    def get(self, name: str, file: str = "", place: str = "") -> type[T]:
        """Return the class in module ``name``. Raise ManifestError with the nearest name if there is none."""
        if name in self._own():
            return self._only_class(importlib.import_module(f"{self.package}.{name}"))
        if name not in self.plugins():
            problem = Problem(file or self.kind, place, f"unknown {self.kind} {name!r}", nearest(name, self.names()))
            raise ManifestError([problem])
        return self._only_class(self._module(self.plugins()[name], file or self.kind, place))

    def _module(self, plugin: EntryPoint, file: str, place: str) -> ModuleType:
        """Import the module of a plugin, whose last name must be the part's name. Raise ManifestError."""
        given = f"plugin {plugin.name!r} ({plugin.value})"
        if plugin.attr or plugin.module.rsplit(".", 1)[-1] != plugin.name:
            fix = f'write {plugin.name} = "package.{plugin.name}" in its entry points: parts are identified by module'
            raise ManifestError([Problem(file, place, f"{given} does not name a module {plugin.name}", fix)])
        try:
            return importlib.import_module(plugin.module)
        except ImportError as error:
            fix = "install it again, or remove its package"
            raise ManifestError([Problem(file, place, f"{given} cannot be imported: {error}", fix)]) from error

    def _only_class(self, module: ModuleType) -> type[T]:
        classes = [
            c
            for _, c in inspect.getmembers(module, inspect.isclass)
            if issubclass(c, self.base)
            and c is not self.base
            and c.__module__.startswith(module.__name__)
            and not inspect.isabstract(c)
        ]
        if len(classes) != 1:
            raise TypeError(f"{module.__name__} must define exactly one {self.base.__name__}, found {len(classes)}")
        return classes[0]
