"""A process that dies where it is told to."""

from __future__ import annotations

import os
import signal
import sys
import threading


def die_at(step: int) -> None:
    """SIGKILL to this process at its ``step``-th call of a built-in function, in any of its threads."""
    calls = iter(range(step))

    def profile(frame: object, event: str, argument: object) -> None:
        if event == "c_call" and next(calls, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)

    threading.setprofile(profile)
    sys.setprofile(profile)
