"""Durable file operations: atomic replacement, fsync of files and directories, and the lock of the one writer."""

from __future__ import annotations

import json
import os
import socket
import time
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from cache.errors import StoreBusyError
from cache.layout import LOCK, temporary_for

try:
    import fcntl
except ImportError:  # Windows: no advisory lock; one writer at a time is then up to the user
    fcntl = None  # type: ignore[assignment]


def sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_directory(path: Path) -> None:
    """Make renames in ``path`` durable. A no-op where directories cannot be opened (Windows)."""
    if os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_all(descriptor: int, data: memoryview, offset: int) -> None:
    """Write every byte of ``data`` at ``offset``; one call to the system may take only part of it."""
    data = data.cast("B")
    while data:
        os.lseek(descriptor, offset, os.SEEK_SET)
        written = os.write(descriptor, data[: 1 << 30])
        data, offset = data[written:], offset + written


def read_into(path: Path, data: memoryview, offset: int) -> int:
    """Fill ``data`` from ``offset`` of the file; gives the bytes read, fewer when the file ends before."""
    data = data.cast("B")
    done = 0
    with open(path, "rb", buffering=0) as handle:
        handle.seek(offset)
        while done < len(data):
            got = handle.readinto(data[done : done + (1 << 30)])
            if not got:
                break
            done += got
    return done


def together(*tasks: Callable[[], Any]) -> list[Any]:
    """Run the tasks at the same time and give their results; raises the first error, after all have ended.

    Made for waiting on the disk: several syncs at once cost little more than one.
    """
    with ThreadPoolExecutor(len(tasks)) as pool:
        return [future.result() for future in [pool.submit(task) for task in tasks]]


def replace_atomically(path: Path, data: bytes, durable: bool = True, after: Sequence[Callable[[], Any]] = ()) -> None:
    """``path`` holds either its old bytes or ``data``, never a part, whatever happens in between.

    ``after``: what must have happened (syncs of other files) before ``data`` may be seen at ``path``.
    """
    temporary = temporary_for(path)
    try:
        temporary.write_bytes(data)
        if durable:
            together(lambda: sync_file(temporary), *after)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if durable:
        sync_directory(path.parent)


class WriterLock:
    """Keeps a second writer out of ``directory``. The system releases it when its owner dies, however it dies.

    The lock belongs to this process: a forked child closes its copy, so that it cannot keep a dead writer's lock.
    """

    def __init__(self, directory: Path):
        self.path = directory / LOCK
        self._handle = open(self.path, "a+b", buffering=0)  # noqa: SIM115 - held open for the writer's life
        if fcntl:
            try:
                fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                owner = self._owner()
                self._handle.close()
                raise StoreBusyError(
                    f"{directory} is being written by another process ({owner}): wait for it, or stop it, "
                    "and run the same command again"
                ) from None
            except OSError:
                pass  # a file system without locks
        about = {"pid": os.getpid(), "host": socket.gethostname(), "since": now()}
        self._handle.truncate(0)
        self._handle.write(json.dumps(about).encode() + b"\n")
        _held.add(self)

    def _owner(self) -> str:
        try:
            about = json.loads(self.path.read_bytes())
            return f"process {about['pid']} on {about['host']} since {about['since']}"
        except (OSError, ValueError, KeyError, TypeError):
            return "owner unknown"

    def release(self) -> None:
        self._handle.close()


_held: weakref.WeakSet[WriterLock] = weakref.WeakSet()


def _close_in_child() -> None:
    for lock in list(_held):
        lock._handle.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)


def now() -> str:
    """The time in UTC, to the second."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
