"""Assignment of one worker process per GPU, independent of how workers are started. Imports no heavy library."""

from __future__ import annotations

import os
import socket
import tempfile
from pathlib import Path
from typing import IO

from manifests.errors import FashionNTMError

_claims: list[IO[bytes]] = []


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
    raise WorkerError(
        f"all {count} GPUs of {socket.gethostname()} are held by other workers: start one worker process a GPU"
    )
