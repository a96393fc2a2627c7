"""Run by Dask in each worker process that this project starts; imports nothing heavy."""

from __future__ import annotations

import signal
import threading
from typing import Any


def dask_setup(worker: Any) -> None:
    """Ctrl-C in the terminal reaches every process of it, but is for the coordinator, which ends the workers."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
