"""Ctrl-C at a moment of the job's choosing: the batch that runs is finished, what is finished is kept."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def gentle_interrupt() -> Iterator[Callable[[], None]]:
    """Gives a function to call between batches; it raises KeyboardInterrupt once SIGINT has come.

    A second SIGINT interrupts at once. Outside the main thread, and where SIGINT is ignored or handled by somebody
    else, nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) is not _DEFAULT:
        yield lambda: None
        return
    asked = threading.Event()

    def note(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, _DEFAULT)
        asked.set()

    def check() -> None:
        if asked.is_set():
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, note)
    try:
        yield check
    finally:
        signal.signal(signal.SIGINT, _DEFAULT)
        check_late = asked.is_set()
    if check_late:  # it came after the last look
        raise KeyboardInterrupt


_DEFAULT = signal.default_int_handler
