"""Cache of verified files, so that a digest is computed once per file and not once per process.

A file counts as unchanged if its size, both times (users cannot set back the change time) and inode are the same as
when it was checked. Stamps are only kept for files unchanged for two seconds, because a write within the same tick of
the file system's clock would go unnoticed. Stamps are optional: without them, files are checked once more, and a
changed, copied or restored shard has no valid stamp. They do not detect silent corruption of the disk: ``verify`` and
``Store.open(path, verify="always")`` read every byte.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from contextlib import suppress
from pathlib import Path

from cache.files import replace_atomically
from cache.layout import VERIFIED

_REST = 2.0  # seconds


def sha256_of(path: Path) -> str:
    """Return the SHA-256 (64 hex digits) of a file's bytes."""
    with open(path, "rb", buffering=0) as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


_in_process: dict[Path, tuple[list[int], str]] = {}


def remembered_digest(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, computed once per process while its stamp is unchanged. Raise OSError."""
    before = stamp_of(os.stat(path))
    stamp, found = _in_process.get(path, ([], ""))
    if stamp != before:
        found = sha256_of(path)
        if _at_rest(path, before):
            _in_process[path] = (before, found)
    return found


def _at_rest(path: Path, before: list[int]) -> bool:
    """Return whether the file still has the stamp ``before`` and had not changed for two seconds."""
    return time.time() - max(before[1], before[2]) / 1e9 > _REST and stamp_of(os.stat(path)) == before


class StatCache:
    """Stamps of one store. Safe in threads and after fork: a lost update costs one more check."""

    def __init__(self, directory: Path):
        self.path = directory / VERIFIED
        self._known: dict[str, list] | None = None
        self._fresh: dict[str, list] = {}

    def digest(self, path: Path, expected: str, remembered: bool = True) -> str:
        """Return the file's digest: ``expected`` if ``remembered`` and stamped, else computed. Raise OSError."""
        before = stamp_of(os.stat(path))
        if remembered and self._load().get(path.name) == [expected, *before]:
            return expected
        found = sha256_of(path)
        if found == expected and _at_rest(path, before):
            self._fresh[path.name] = [found, *before]
        return found

    def save(self) -> None:
        """Save the stamps added since the last call; ignore errors of read-only folders, since stamps are optional."""
        if not self._fresh:
            return
        fresh, self._fresh = self._fresh, {}
        self._known = {**self._read(), **fresh}
        with suppress(OSError):
            replace_atomically(self.path, json.dumps(self._known).encode() + b"\n", durable=False)

    def _load(self) -> dict[str, list]:
        if self._known is None:
            self._known = self._read()
        return self._known

    def _read(self) -> dict[str, list]:
        try:
            known = json.loads(self.path.read_bytes())
        except (OSError, ValueError, RecursionError):
            return {}
        return known if isinstance(known, dict) else {}


def stamp_of(status: os.stat_result) -> list[int]:
    """Return size, modification time, change time (ns) and inode, which identify an unchanged file."""
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
