"""Connection to a Dask cluster: an existing scheduler, or worker processes of this machine. Imports nothing heavy.

Also Dask's preload script of the local worker processes (``dask_setup``).
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from manifests.errors import FashionNTMError

if TYPE_CHECKING:
    from distributed import Client


class ClusterError(FashionNTMError):
    """The cluster is unreachable, has no worker, or a worker failed."""


@contextmanager
def connect(scheduler: str | None, local: int = 0, threads: int = 1) -> Iterator[Client]:
    """Yield a client of the cluster at ``scheduler`` (tcp://host:port), or of ``local`` new processes.

    ``threads``: concurrent tasks per local process. A local process may start processes of its own (decoding), so it is
    not daemonic; it still ends with this one. Raises ClusterError when Dask is missing, or the scheduler is unreachable
    or ends during the job.
    """
    try:
        import dask
        from distributed import Client, LocalCluster
    except ImportError as error:
        raise ClusterError(f"a cluster needs Dask's distributed ({error}): pip install 'dask[distributed]'") from error
    if not scheduler:
        with (
            dask.config.set({"distributed.worker.daemon": False}),
            LocalCluster(
                n_workers=local,
                threads_per_worker=threads,
                processes=True,
                host="127.0.0.1",
                dashboard_address=None,
                preload=[__name__],
                silence_logs=50,
                memory_limit=0,
            ) as cluster,
            Client(cluster, set_as_default=False) as client,
        ):
            yield client
        return
    began = time.monotonic()
    try:
        client = Client(scheduler, timeout=20, set_as_default=False)
    except (OSError, TimeoutError, ValueError) as error:
        raise ClusterError(
            f"no Dask scheduler answers at {scheduler!r} ({' '.join(str(error).split())[:200]}; tried for "
            f"{time.monotonic() - began:.0f} s): start `dask scheduler` and give the address that it prints"
        ) from None
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
    return ClusterError(
        f"the Dask scheduler at {scheduler} ended during the job, or its connection broke: start it and its workers "
        "again, and run the same command with its address to resume"
    )


def wait_for_workers(client: Client) -> None:
    """Wait for a worker to join. Raises ClusterError after a minute."""
    try:
        client.wait_for_workers(1, timeout=60)
    except TimeoutError:
        raise ClusterError(
            f"the cluster at {client.scheduler.address} has had no worker for a minute: start some, and run the same "
            "command again"
        ) from None


def dask_setup(worker: Any) -> None:
    """Ignore Ctrl-C, which a terminal sends to all its processes: the coordinator handles it and ends the workers."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
