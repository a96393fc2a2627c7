"""Durable file operations: atomic replacement, and fsync of files and directories."""

from __future__ import annotations

import errno
import os
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from cache.layout import temporary_for

_NO_FSYNC = {errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF, errno.EISDIR}  # of a folder, on some mounts


class DurabilityWarning(UserWarning):
    """A file system cannot make something durable; the job goes on."""


def sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_directory(path: Path) -> None:
    """Make renames in ``path`` durable. A no-op where directories cannot be opened (Windows).

    Warns (DurabilityWarning) where the file system cannot fsync a folder, as some network mounts cannot.
    """
    if os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_FSYNC:
            raise
        what = f"{path}: this file system cannot fsync a folder ({error.strerror}); the job goes on"
        cost = "after a power cut the newest files may be missing: run the same command again then"
        warnings.warn(DurabilityWarning(f"{what}, but {cost}"), stacklevel=1)  # once for each folder
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


def replace_atomically(
    path: Path,
    data: bytes,
    durable: bool = True,
    after: Sequence[Callable[[], Any]] = (),
    last: Callable[[], Any] = lambda: None,
) -> None:
    """``path`` holds either its old bytes or ``data``, never a part, whatever happens in between.

    ``after``: what must have happened (syncs of other files) before ``data`` may be seen at ``path``.
    ``last``: called when all that is done; the replacement does not happen if it raises.
    """
    temporary = temporary_for(path)
    try:
        temporary.write_bytes(data)
        if durable:
            together(lambda: sync_file(temporary), *after)
        last()
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if durable:
        sync_directory(path.parent)


def now() -> str:
    """The time in UTC, to the second."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
