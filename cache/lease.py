"""The lease of the one writer of a store: who has it, since when, and the sign of life of its owner.

A lease is a file ``.writer.lease-<epoch>`` that appears whole, by a hard link, or where there is none by O_EXCL: both
are atomic on one machine and on a shared folder (NFS from version 3). Its owner touches it every few seconds. A lease
is stale, and is taken over, when

- its owner ran under this same kernel and the system has released its lock (flock), however it died: at once;
- or it shows no sign of life for ``STALE`` seconds (other machines, file systems without locks), by the clock of the
  file system, so that clocks of machines need not agree.

A new owner makes the next epoch's file, then removes the earlier ones, then sweeps all temporary files, and only then
reads the store. An owner publishes by renaming a temporary file, made before it looked whether its lease is still
there. So one that was taken for dead and wakes up cannot publish: either it sees that its lease is gone, or its
temporary file is, and the rename fails.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import socket
import threading
import weakref
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from cache.errors import StoreBusyError
from cache.files import now
from cache.layout import LEASE, LOCK, temporary_for

try:
    import fcntl
except ImportError:  # Windows: no flock; the age of the lease decides
    fcntl = None  # type: ignore[assignment]

HEARTBEAT = 5.0  # seconds between two signs of life
STALE = 60.0  # seconds without one
_NAME = re.compile(re.escape(LEASE) + r"(\d{6,12})")


class Lease:
    """Held from construction to ``release``. Raises StoreBusyError while another writer's lease is alive.

    It belongs to this process: a forked child closes its copy, so that it cannot keep a dead writer's lock.
    """

    def __init__(self, directory: Path):
        self.directory, self.token = directory, secrets.token_hex(8)
        self._stop = threading.Event()
        self._handle = open(directory / LOCK, "a+b", buffering=0)  # noqa: SIM115 - held open for the writer's life
        try:
            self.path = self._take(_locked(self._handle))
        except BaseException:
            self._handle.close()
            raise
        _held.add(self)
        weakref.finalize(self, self._stop.set)  # a writer that was dropped without being closed is dead too
        threading.Thread(target=_keep_alive, args=(self.path, self._stop), daemon=True, name="lease").start()

    def _take(self, locked: bool | None) -> Path:
        """Make the next epoch's lease, if the last one is free. ``locked``: see ``_locked``."""
        epoch = 0
        for last in _leases(self.directory)[-1:]:
            about, epoch = _read(last), int(last.name.removeprefix(LEASE))
            here = about.get("kernel") == _kernel()
            age = _age(last)
            if age is not None and not (here and locked) and ((here and locked is False) or age < STALE):
                raise self._busy(about, age, can_die=not here or locked is None)
        if not epoch and locked is False:
            raise self._busy({}, 0.0, can_die=False)  # another one is just beginning, or just ending
        path = self.directory / f"{LEASE}{epoch + 1:06d}"
        about = {
            "token": self.token,
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "kernel": _kernel(),
            "since": now(),
        }
        try:
            _make(path, about)
        except FileExistsError:
            raise self._busy(_read(path), 0.0, can_die=True) from None
        for other in _leases(self.directory):
            if other > path:  # made while this one was: it may have looked before this one was there
                path.unlink(missing_ok=True)
                raise self._busy(_read(other), 0.0, can_die=True)
            if other != path:
                other.unlink(missing_ok=True)
        return path

    def _busy(self, about: dict[str, Any], age: float, can_die: bool) -> StoreBusyError:
        owner = f"process {about['pid']} on {about['host']} since {about['since']}" if about else "owner unknown"
        later = f", or wait: a writer without a sign of life for {STALE:.0f} s is taken for dead" if can_die else ""
        return StoreBusyError(
            f"{self.directory} is being written by another process ({owner}; last sign of life {age:.0f} s ago): wait "
            f"for it, or stop it{later}, and run the same command again"
        )

    def check(self) -> None:
        """Raises StoreBusyError when another writer took this one for dead and has the store now."""
        if _read(self.path).get("token") == self.token:
            return
        new = next((_read(path) for path in reversed(_leases(self.directory))), {})
        owner = f"process {new['pid']} on {new['host']} since {new['since']} has it now" if new else "its lease is gone"
        raise StoreBusyError(
            f"this process was taken for dead and has lost {self.directory}: {owner}. What it had committed is whole; "
            "run the same command again when the store is free"
        )

    def release(self) -> None:
        """Let the next writer in. Never removes the lease of another one."""
        if not self._handle.closed:
            self._stop.set()
            if _read(self.path).get("token") == self.token:
                self.path.unlink(missing_ok=True)
            self._handle.close()


def _make(path: Path, about: dict[str, Any]) -> None:
    """The lease, with its owner in it: a writer that dies on the way must not leave one that nobody can be told dead by.

    Raises FileExistsError when another writer was faster.
    """
    text, whole = json.dumps(about).encode() + b"\n", temporary_for(path)
    whole.write_bytes(text)
    try:
        os.link(whole, path)
    except FileNotFoundError:  # swept away by a writer that has begun
        raise FileExistsError(path) from None
    except FileExistsError:
        if _read(path) != about:  # else this very request, repeated by a network
            raise
    except OSError:  # a file system without hard links
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666), "wb") as handle:
            handle.write(text)
    finally:
        whole.unlink(missing_ok=True)


def _locked(handle: Any) -> bool | None:
    """Whether this process has the lock now; None where the file system knows no locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _keep_alive(path: Path, stop: threading.Event) -> None:
    while not stop.wait(HEARTBEAT):
        try:
            os.utime(path)
        except FileNotFoundError:
            return  # taken over; ``check`` says so
        except OSError:
            continue  # a moment without the network


def _leases(directory: Path) -> list[Path]:
    """The lease files, by epoch: one, or for a moment two."""
    found = [name for name in os.listdir(directory) if _NAME.fullmatch(name)]
    return [directory / name for name in sorted(found, key=lambda name: int(name.removeprefix(LEASE)))]


def _read(path: Path) -> dict[str, Any]:
    """What a lease says of its owner; nothing where it is gone or not written yet."""
    try:
        about = json.loads(path.read_bytes())
        return about if isinstance(about, dict) and about.keys() >= {"token", "pid", "host", "since"} else {}
    except (OSError, ValueError, RecursionError):
        return {}


def _age(path: Path) -> float | None:
    """Seconds since the last sign of life, by the file system's own clock; None when the lease is gone."""
    probe = temporary_for(path)
    try:
        last = path.stat().st_mtime
    except FileNotFoundError:
        return None
    try:
        probe.touch()
        return probe.stat().st_mtime - last
    except FileNotFoundError:
        return 0.0  # another writer swept it away just now: that is a sign of life
    finally:
        with suppress(OSError):
            probe.unlink()


@cache
def _kernel() -> str:
    """The running system: processes that give the same one see each other's locks, in containers too."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return socket.gethostname()


_held: weakref.WeakSet[Lease] = weakref.WeakSet()


def _forget_in_child() -> None:
    for lease in list(_held):  # its thread is not in the child
        lease._handle.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)
