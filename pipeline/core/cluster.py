"""Workers of a Dask cluster: an existing scheduler's, or processes of this machine; one per GPU. Imports nothing heavy.

Also Dask's preload script of the local worker processes (``dask_setup``).
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from manifests.errors import FashionNTMError

if TYPE_CHECKING:
    from distributed import Client

_DASKS = "65536"  # Dask's MALLOC_TRIM_THRESHOLD_ for its workers
_TRIM, _MMAP = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of <malloc.h>
_KEPT, _LARGEST = 256 << 20, 32 << 20  # bytes; the second is the largest value that glibc accepts
_claims: list[IO[bytes]] = []


class ClusterError(FashionNTMError):
    """The cluster is unreachable, has no worker, or a worker failed."""


@contextmanager
def connect(scheduler: str | None, local: int = 0, threads: int = 1) -> Iterator[Client]:
    """Yield a client of the cluster at ``scheduler`` (tcp://host:port), or of ``local`` new processes.

    ``threads``: concurrent tasks per local process, which may start processes of its own (decoding), so it is not
    daemonic; it still ends with this one. Raises ClusterError without Dask, or for a scheduler lost or not found.
    """
    try:
        import dask
        from distributed import Client, LocalCluster
    except ImportError as error:
        raise ClusterError(f"a cluster needs Dask's distributed ({error}): pip install 'dask[distributed]'") from error
    if not scheduler:
        options: dict[str, Any] = {"n_workers": local, "threads_per_worker": threads, "processes": True}
        options |= {"host": "127.0.0.1", "dashboard_address": None, "preload": [__name__]}
        options |= {"silence_logs": 50, "memory_limit": 0}
        with (
            dask.config.set({"distributed.worker.daemon": False}),
            LocalCluster(**options) as cluster,
            Client(cluster, set_as_default=False) as client,
        ):
            yield client
        return
    began = time.monotonic()
    try:
        client = Client(scheduler, timeout=20, set_as_default=False)
    except (OSError, TimeoutError, ValueError) as error:
        why = f"{' '.join(str(error).split())[:200]}; tried for {time.monotonic() - began:.0f} s"
        fix = "start `dask scheduler` and give the address that it prints"
        raise ClusterError(f"no Dask scheduler answers at {scheduler!r} ({why}): {fix}") from None
    with client:
        try:
            if not client.nthreads():
                wait_for_workers(client)
            yield client
        except (CancelledError, OSError, RuntimeError) as error:  # Dask cancels all tasks of a lost scheduler
            if client.status == "running":
                raise
            raise lost(scheduler) from error


def lost(scheduler: str) -> ClusterError:
    """Return the error of a scheduler that ended or became unreachable during a job."""
    what = f"the Dask scheduler at {scheduler} ended during the job, or its connection broke"
    return ClusterError(f"{what}: start it and its workers again, and run the same command with its address to resume")


def wait_for_workers(client: Client) -> None:
    """Wait for a worker to join. Raises ClusterError after a minute."""
    try:
        client.wait_for_workers(1, timeout=60)
    except TimeoutError:
        what = f"the cluster at {client.scheduler.address} has had no worker for a minute"
        raise ClusterError(f"{what}: start some, and run the same command again") from None


def dask_setup(worker: Any) -> None:
    """Ignore Ctrl-C, which a terminal sends to all its processes: the coordinator handles it and ends the workers."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def keep_freed_memory() -> bool:
    """Let a Dask worker reuse its image buffers; return whether a setting was changed.

    Dask configures glibc's malloc to return freed pages immediately, which limits the memory of a worker with many
    small tasks. A decoder requests the same buffers for every image and would get them page by page from the system
    each time. A threshold set by the user and other allocators are left unchanged.
    """
    if os.environ.get("MALLOC_TRIM_THRESHOLD_") != _DASKS:
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # no glibc
        return False
    return bool(mallopt(_TRIM, _KEPT)) and bool(mallopt(_MMAP, _LARGEST))


class WorkerError(FashionNTMError):
    """A worker is unusable: the store is not visible, its weights differ, or no device is free."""


def claim_gpu(count: int, folder: Path | None = None) -> str:
    """Lock the first of this machine's ``count`` GPUs that no other worker process uses, until this process ends.

    Respects CUDA_VISIBLE_DEVICES. Raises WorkerError when all GPUs are in use.
    """
    import fcntl

    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    for index in range(count):
        name = visible[index].strip() if index < len(visible) and visible[index].strip() else str(index)
        file = (folder or Path(tempfile.gettempdir())) / f"fashion-ntm-gpu-{os.getuid()}-{name.replace('/', '_')}.lock"
        handle = open(file, "ab")  # noqa: SIM115 - open until the process ends
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            handle.close()
            continue
        _claims.append(handle)
        return f"cuda:{index}"
    what = f"all {count} GPUs of {socket.gethostname()} are held by other workers"
    raise WorkerError(f"{what}: start one worker process a GPU")
