"""Lease of the single writer of a store: its owner, start time and heartbeat.

A lease is a file ``.writer.lease-<epoch>``, created by a hard link or, where links are unsupported, by O_EXCL: both
are atomic on one machine and on a shared folder (NFS from version 3). Its owner touches it every few seconds. A lease
has expired, and is taken over,

- at once if its owner ran under the same kernel and the system has released its lock (flock), however it died;
- or if it has had no heartbeat for ``STALE`` seconds (other machines, file systems without locks), by the clock of the
  file system, so that clocks of machines need not agree.

A new owner creates the next epoch's file, then removes the earlier ones, then all temporary files, and only then
reads the store. An owner publishes by renaming a temporary file that it created before it checked its lease. So an
owner whose lease expired while it was suspended cannot publish: either it finds its lease gone, or its temporary file
is gone and the rename fails.
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
except ImportError:  # Windows has no flock; the age of the lease decides
    fcntl = None  # type: ignore[assignment]

HEARTBEAT = 5.0  # seconds between heartbeats
STALE = 60.0  # seconds without a heartbeat
_NAME = re.compile(re.escape(LEASE) + r"(\d{6,12})")


class Lease:
    """Writer's lease from construction to ``release``. Raises StoreBusyError while another writer's lease is valid.

    It belongs to this process: a forked child closes its copy, so that it cannot keep the lock of a dead writer.
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
        weakref.finalize(self, self._stop.set)  # also ends the lease of a writer that is garbage-collected unclosed
        threading.Thread(target=_keep_alive, args=(self.path, self._stop), daemon=True, name="lease").start()

    def _take(self, locked: bool | None) -> Path:
        """Create the next epoch's lease if the last one is free. ``locked``: see ``_locked``."""
        epoch = 0
        for last in _leases(self.directory)[-1:]:
            about, epoch = _read(last), int(last.name.removeprefix(LEASE))
            here = about.get("kernel") == _kernel()
            age = _age(last)
            if age is not None and not (here and locked) and ((here and locked is False) or age < STALE):
                raise self._busy(about, age, can_die=not here or locked is None)
        if not epoch and locked is False:
            raise self._busy({}, 0.0, can_die=False)  # another writer is starting or ending
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
            if other > path:  # created concurrently: its check may have missed this one
                path.unlink(missing_ok=True)
                raise self._busy(_read(other), 0.0, can_die=True)
            if other != path:
                other.unlink(missing_ok=True)
        return path

    def _busy(self, about: dict[str, Any], age: float, can_die: bool) -> StoreBusyError:
        owner = f"process {about['pid']} on {about['host']} since {about['since']}" if about else "owner unknown"
        later = f", or wait: a lease that is not renewed for {STALE:.0f} s expires" if can_die else ""
        return StoreBusyError(
            f"{self.directory} is being written by another process ({owner}; last sign of life {age:.0f} s ago): wait "
            f"for it, or stop it{later}, and run the same command again"
        )

    def check(self) -> None:
        """Raise StoreBusyError if this lease expired and another writer has the store."""
        if _read(self.path).get("token") == self.token:
            return
        new = next((_read(path) for path in reversed(_leases(self.directory))), {})
        owner = f"process {new['pid']} on {new['host']} since {new['since']} has it now" if new else "its lease is gone"
        raise StoreBusyError(
            f"the lease of this process on {self.directory} expired: {owner}. Everything committed before is whole; "
            "run the same command again when the store is free"
        )

    def release(self) -> None:
        """Release the lease for the next writer. The lease of another writer is never removed."""
        if not self._handle.closed:
            self._stop.set()
            if _read(self.path).get("token") == self.token:
                with suppress(OSError):  # a disk that is read-only now: the closed lock frees the store
                    self.path.unlink(missing_ok=True)
            self._handle.close()


def _make(path: Path, about: dict[str, Any]) -> None:
    """Create the lease with its owner written first: a crash must not leave a lease of unknown owner.

    Raise FileExistsError if another writer was faster.
    """
    text, whole = json.dumps(about).encode() + b"\n", temporary_for(path)
    whole.write_bytes(text)
    try:
        os.link(whole, path)
    except FileNotFoundError:  # removed by a writer that has started
        raise FileExistsError(path) from None
    except FileExistsError:
        if _read(path) != about:  # else the same request, repeated by the network file system
            raise
    except OSError:  # a file system without hard links
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666), "wb") as handle:
            handle.write(text)
    finally:
        whole.unlink(missing_ok=True)


def _locked(handle: Any) -> bool | None:
    """Try to lock; return whether this process has the lock, None if the file system has no locks."""
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
            return  # taken over; ``check`` reports it
        except OSError:
            continue  # temporary network failure


def _leases(directory: Path) -> list[Path]:
    """Return the lease files by epoch: one, or two during a takeover."""
    found = [name for name in os.listdir(directory) if _NAME.fullmatch(name)]
    return [directory / name for name in sorted(found, key=lambda name: int(name.removeprefix(LEASE)))]


def _read(path: Path) -> dict[str, Any]:
    """Read the owner of a lease; empty if it is gone or not written yet."""
    try:
        about = json.loads(path.read_bytes())
        return about if isinstance(about, dict) and about.keys() >= {"token", "pid", "host", "since"} else {}
    except (OSError, ValueError, RecursionError):
        return {}


def _age(path: Path) -> float | None:
    """Return the seconds since the last heartbeat, by the file system's clock; None if the lease is gone."""
    probe = temporary_for(path)
    try:
        last = path.stat().st_mtime
    except FileNotFoundError:
        return None
    try:
        probe.touch()
        return probe.stat().st_mtime - last
    except FileNotFoundError:
        return 0.0  # another writer just removed it, so a writer is alive
    finally:
        with suppress(OSError):
            probe.unlink()


@cache
def _kernel() -> str:
    """Return an id of the running kernel: processes with the same id see each other's locks, in containers too."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return socket.gethostname()


_held: weakref.WeakSet[Lease] = weakref.WeakSet()


def _forget_in_child() -> None:
    for lease in list(_held):  # the child does not have its thread
        lease._handle.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)
