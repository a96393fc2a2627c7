"""Deferred Ctrl-C: the running batch is completed, and finished rows are kept."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def gentle_interrupt() -> Iterator[Callable[[], None]]:
    """Yield a function to call between batches that raises KeyboardInterrupt after a SIGINT.

    A second SIGINT interrupts at once. Does nothing outside the main thread, or if SIGINT is ignored or has another
    handler.
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
    if check_late:  # SIGINT after the last check
        raise KeyboardInterrupt


_DEFAULT = signal.default_int_handler
