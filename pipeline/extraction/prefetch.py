"""Bounded work in threads: ordered prefetching of jobs, a generator in a thread, and a writer thread."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from queue import Empty, Full, Queue
from typing import Generic, TypeVar

A = TypeVar("A")
B = TypeVar("B")
WAITING = 2  # maximum of finished shards in memory; the model waits for the disk beyond it
_POLL = 0.1  # seconds between checks whether the consumer has stopped


def in_order(function: Callable[[A], B], jobs: Iterable[A], workers: int, ahead: int) -> Iterator[tuple[A, B]]:
    """Yield (job, function(job)) in the order of ``jobs``, with at most ``ahead`` jobs started but not consumed.

    ``workers`` 0 runs every job in the calling thread.
    """
    if workers == 0:
        yield from ((job, function(job)) for job in jobs)
        return
    pool = ThreadPoolExecutor(workers, "prepare")
    try:
        window: deque[tuple[A, Future[B]]] = deque()
        for job in jobs:
            window.append((job, pool.submit(function, job)))
            if len(window) > ahead:
                first, future = window.popleft()
                yield first, future.result()
        while window:
            first, future = window.popleft()
            yield first, future.result()
    finally:
        pool.shutdown(cancel_futures=True)


class InThread(Iterator[A], AbstractContextManager["InThread[A]"]):
    """Iterator over ``source``, which runs in a separate thread, at most ``depth`` items ahead.

    An error of ``source`` is raised after its last item. Leaving the context manager closes ``source`` and ends the
    thread.
    """

    def __init__(self, source: Generator[A, None, None], depth: int):
        self._source = source
        self._ready: Queue[tuple[str, object]] = Queue(depth)
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._produce, name="batches", daemon=True)
        self._thread.start()

    def _put(self, kind: str, value: object = None) -> bool:
        while not self._left.is_set():
            try:
                self._ready.put((kind, value), timeout=_POLL)
                return True
            except Full:
                continue
        return False

    def _produce(self) -> None:
        try:
            for item in self._source:
                if not self._put("item", item):
                    break
            else:
                self._put("end")
        except BaseException as error:  # raised again in the consumer
            self._put("error", error)
        finally:
            self._source.close()

    def __next__(self) -> A:
        kind, value = self._ready.get()
        if kind == "item":
            return value  # type: ignore[return-value]
        self._left.set()
        if kind == "error":
            assert isinstance(value, BaseException)
            raise value
        raise StopIteration

    def __exit__(self, *error: object) -> None:
        self._left.set()
        with suppress(Empty):
            while True:  # drain the queue, so that a waiting producer sees the stop
                self._ready.get_nowait()
        self._thread.join()


class Commits(AbstractContextManager["Commits[A]"], Generic[A]):
    """Queue that calls ``commit`` on each item, in order, in one thread. As a context manager it waits for the last.

    The first error of ``commit`` is raised by the next ``put`` or on exit; nothing is committed after it.
    ``threaded=False``: ``put`` commits directly.
    """

    def __init__(self, commit: Callable[[A], None], threaded: bool = True):
        self._commit = commit
        self._error: BaseException | None = None
        self._pool = ThreadPoolExecutor(1, "writer") if threaded else None
        self._waiting: deque[Future[None]] = deque()

    def _work(self, thing: A) -> None:
        if self._error is None:
            try:
                self._commit(thing)
            except BaseException as error:  # raised again in the calling thread
                self._error = error

    def put(self, thing: A) -> None:
        """Add one shard; wait while ``WAITING`` others are unwritten."""
        if self._pool is None:
            self._commit(thing)
            return
        while len(self._waiting) > WAITING:
            self._waiting[0].result()  # an interrupt leaves it to ``__exit__``
            self._waiting.popleft()
        if self._error is not None:
            raise self._error
        self._waiting.append(self._pool.submit(self._work, thing))

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        while self._waiting:
            with suppress(KeyboardInterrupt):  # finish the short commit, since a partial one is discarded
                self._waiting[0].result()
                self._waiting.popleft()
        if self._pool is not None:
            self._pool.shutdown()
        if self._error is not None and (error is None or isinstance(error, KeyboardInterrupt)):
            raise self._error
