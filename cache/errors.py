"""Errors of the feature store. Each message names the value, the place and the next step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from manifests.errors import FashionNTMError, IncompleteError, advice, disk_problem


class StoreError(FashionNTMError):
    """Base of the errors of the feature store."""


class StoreNotFoundError(StoreError, IncompleteError, FileNotFoundError):
    """No store at the path: nothing has been extracted there yet."""


class StoreCorruptError(StoreError):
    """A file of the store is missing, truncated, changed or inconsistent with the manifest. Its rows are not read."""


class StoreVersionError(StoreError):
    """The store was written in a newer format than this version reads."""


class StoreBusyError(StoreError):
    """Another writer has the lease of the store."""


class StoreLookupError(StoreError, LookupError):
    """A table or row that the store does not have."""


class StoreMismatchError(StoreError):
    """The store has features of other semantic fields. ``changed``: one line ``field: old -> new`` per field."""

    exit_code = 3

    def __init__(self, path: Path, changed: Iterable[str]):
        self.path, self.changed = path, tuple(changed)
        lines = "\n".join(f"  {line}" for line in self.changed)
        super().__init__(
            f"{path} holds features made in another way (stored -> asked):\n{lines}\n"
            "it was renamed or copied: move it back, or write to another folder"
        )


@contextmanager
def naming(path: Path, action: str, survives: str = "") -> Iterator[None]:
    """Convert an OSError (disk full, read-only folder, no permission) to a StoreError with path and kept state."""
    try:
        yield
    except FashionNTMError:
        raise
    except OSError as error:
        kept = survives or advice(error)
        raise StoreError(f"cannot {action} {disk_problem(error, path)}; {kept}") from error
