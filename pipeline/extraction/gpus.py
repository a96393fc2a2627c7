"""One worker process a GPU, however the workers were started. Imports nothing heavy."""

from __future__ import annotations

import os
import socket
import tempfile
from pathlib import Path
from typing import IO

from manifests.errors import FashionNTMError

_claims: list[IO[bytes]] = []


class WorkerError(FashionNTMError):
    """A worker cannot take part: it sees no store, has other weights, or no device is left for it."""


def claim_gpu(count: int, folder: Path | None = None) -> str:
    """The first of this machine's ``count`` GPUs that no other worker process holds, until this process ends.

    One process a GPU however the workers were started; CUDA_VISIBLE_DEVICES is respected. Raises WorkerError when all
    are taken.
    """
    import fcntl

    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    for index in range(count):
        name = visible[index].strip() if index < len(visible) and visible[index].strip() else str(index)
        file = (folder or Path(tempfile.gettempdir())) / f"fashion-ntm-gpu-{os.getuid()}-{name.replace('/', '_')}.lock"
        handle = open(file, "ab")  # noqa: SIM115 - held open for the life of the process
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
