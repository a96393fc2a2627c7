"""Registry of parts by file name: each module of a package defines exactly one class of the package's kind."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from types import ModuleType
from typing import Generic, TypeVar

from manifests.errors import ManifestError, Problem, nearest

T = TypeVar("T")


class Registry(Generic[T]):
    """Names and classes of the modules of ``package`` (``base`` and names with a leading underscore left out).

    To add a part, add a file. Modules are imported on first use.
    """

    def __init__(self, package: str, base: type[T], kind: str):
        self.package, self.base, self.kind = package, base, kind

    def names(self) -> tuple[str, ...]:
        path = importlib.import_module(self.package).__path__
        found = (m.name for m in pkgutil.iter_modules(path))
        return tuple(sorted(n for n in found if n != "base" and not n.startswith("_")))

    def get(self, name: str, file: str = "", place: str = "") -> type[T]:
        """Return the class in module ``name``. Raise ManifestError with the nearest name if there is none."""
        if name not in self.names():
            problem = Problem(file or self.kind, place, f"unknown {self.kind} {name!r}", nearest(name, self.names()))
            raise ManifestError([problem])
        return self._only_class(importlib.import_module(f"{self.package}.{name}"))

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
