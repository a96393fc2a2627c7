"""Writer thread that commits finished shards while the model computes the next ones."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import Full, Queue
from typing import Generic, TypeVar

T = TypeVar("T")
WAITING = 2  # maximum of finished shards in memory; the model waits for the disk beyond it


class Commits(Generic[T]):
    """Queue that calls ``commit`` on each item, in order, in one thread. As a context manager it waits for the last.

    The first error of ``commit`` is raised by the next ``put`` or on exit; nothing is committed after it.
    ``threaded=False``: ``put`` commits directly.
    """

    def __init__(self, commit: Callable[[T], None], threaded: bool = True):
        self._commit, self._threaded = commit, threaded
        self._queue: Queue[tuple[T] | None] = Queue(WAITING)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="writer", daemon=True)

    def __enter__(self) -> Commits[T]:
        if self._threaded:
            self._thread.start()
        return self

    def _work(self) -> None:
        while (found := self._queue.get()) is not None:
            if self._error is None:
                try:
                    self._commit(*found)
                except BaseException as error:  # raised again in the calling thread
                    self._error = error

    def put(self, thing: T) -> None:
        """Add one shard; wait while ``WAITING`` others are unwritten."""
        if not self._threaded:
            self._commit(thing)
            return
        while True:
            if self._error is not None:
                raise self._error
            try:
                self._queue.put((thing,), timeout=0.5)
                return
            except Full:
                continue

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if not self._threaded:
            return
        self._queue.put(None)
        while self._thread.is_alive():
            try:
                self._thread.join()
            except KeyboardInterrupt:  # finish the short commit, since a partial one is discarded
                continue
        if self._error is not None and (error is None or isinstance(error, KeyboardInterrupt)):
            raise self._error
