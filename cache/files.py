"""Durable file operations: atomic replacement, and fsync of files and directories."""

from __future__ import annotations

import errno
import json
import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from cache.layout import temporary_for

_NO_FSYNC = {errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF, errno.EISDIR}  # for folders on some mounts


class DurabilityWarning(UserWarning):
    """The file system cannot guarantee durability; the job continues."""


def sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_directory(path: Path) -> None:
    """Make renames in ``path`` durable. A no-op if directories cannot be opened (Windows).

    Warn (DurabilityWarning) if the file system cannot fsync a folder, as on some network mounts.
    """
    if os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_FSYNC:
            raise
        what = f"{path}: this file system cannot fsync a folder ({error.strerror}); the job continues"
        cost = "after a power cut the newest files may be missing: run the same command again then"
        warnings.warn(DurabilityWarning(f"{what}, but {cost}"), stacklevel=1)  # once per folder
    finally:
        os.close(descriptor)


def write_all(descriptor: int, data: memoryview, offset: int) -> None:
    """Write all bytes of ``data`` at ``offset``; one system call may write only a part."""
    data = data.cast("B")
    while data:
        os.lseek(descriptor, offset, os.SEEK_SET)
        written = os.write(descriptor, data[: 1 << 30])
        data, offset = data[written:], offset + written


def read_into(path: Path, data: memoryview, offset: int) -> int:
    """Fill ``data`` from ``offset`` of the file; return the number of bytes read, fewer at the end of the file."""
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


def run_concurrently(*tasks: Callable[[], Any]) -> list[Any]:
    """Run the tasks concurrently and return their results; raise the first error after all tasks have ended.

    Meant for disk waits: several concurrent syncs take little longer than one.
    """
    with ThreadPoolExecutor(len(tasks)) as pool:
        return [future.result() for future in [pool.submit(task) for task in tasks]]


def replace_atomically(
    path: Path,
    data: bytes,
    durable: bool = True,
    after: Sequence[Callable[[], object]] = (),
    last: Callable[[], object] = lambda: None,
) -> None:
    """Replace ``path`` by ``data`` atomically: it has either its old bytes or all of ``data`` at any time.

    For the other arguments, see ``replacing``. An OSError has the number of bytes to write as ``needed``.
    """
    try:
        with replacing(path, durable, after, last) as temporary:
            temporary.write_bytes(data)
    except OSError as error:
        if error.filename == str(path):
            error.needed = len(data)  # type: ignore[attr-defined]
        raise


def write_json(
    path: Path,
    value: Any,
    errors: str = "strict",
    last: Callable[[], object] = lambda: None,
    allow_nan: bool = False,
) -> None:
    """Write ``value`` as JSON to ``path`` atomically, and create its folder. Raises ValueError for NaN and infinity.

    ``errors``: of the encoding in UTF-8, "surrogatepass" for file names that are not text. ``last``: see ``replacing``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=allow_nan) + "\n"
    replace_atomically(path, text.encode("utf-8", errors), last=last)


@contextmanager
def replacing(
    path: Path,
    durable: bool = True,
    after: Sequence[Callable[[], object]] = (),
    last: Callable[[], object] = lambda: None,
) -> Iterator[Path]:
    """Yield a temporary name next to ``path``; the file written there replaces ``path`` atomically at the end.

    If the block raises, ``path`` is unchanged and no temporary file remains; an OSError names ``path``.

    Args:
        durable: sync the file and its rename to the disk.
        after: tasks (syncs of other files) that must finish before the new file becomes visible at ``path``.
        last: called after these tasks; if it raises, the file is not replaced.
    """
    temporary = temporary_for(path)
    try:
        yield temporary
        if durable:
            run_concurrently(lambda: sync_file(temporary), *after)
        last()
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):  # the first error counts
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename in (None, str(temporary)):
            error.filename = str(path)
        raise
    if durable:
        sync_directory(path.parent)


def now() -> str:
    """Return the time in UTC, to the second."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
