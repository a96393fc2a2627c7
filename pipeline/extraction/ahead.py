"""Work done ahead of its consumer, in order and within a bound: a pool of threads for jobs, one thread for a generator."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from queue import Empty, Full, Queue
from typing import TypeVar

A, B = TypeVar("A"), TypeVar("B")
_POLL = 0.1  # seconds between looks at whether the consumer has left


def in_order(function: Callable[[A], B], jobs: Iterable[A], workers: int, ahead: int) -> Iterator[tuple[A, B]]:
    """(job, function(job)) in the order of ``jobs``, with at most ``ahead`` jobs begun or finished but not yet taken.

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
        pool.shutdown(wait=False, cancel_futures=True)


def in_thread(source: Generator[A, None, None], depth: int) -> Iterator[A]:
    """The items of ``source``, which runs in a thread of its own and is at most ``depth`` items ahead.

    Its error is raised here, after the items before it. Leaving early closes ``source`` and ends the thread.
    """
    ready: Queue[tuple[str, object]] = Queue(depth)
    left = threading.Event()

    def put(kind: str, value: object) -> bool:
        while not left.is_set():
            try:
                ready.put((kind, value), timeout=_POLL)
                return True
            except Full:
                continue
        return False

    def produce() -> None:
        try:
            for item in source:
                if not put("item", item):
                    break
            else:
                put("end", None)
        except BaseException as error:  # handed over whole: the consumer decides
            put("error", error)
        finally:
            source.close()

    thread = threading.Thread(target=produce, name="batches", daemon=True)
    thread.start()
    try:
        while True:
            kind, value = ready.get()
            if kind == "end":
                return
            if kind == "error":
                assert isinstance(value, BaseException)
                raise value
            yield value  # type: ignore[misc]
    finally:
        left.set()
        _drain(ready)
        thread.join()


def _drain(queue: Queue[tuple[str, object]]) -> None:
    try:
        while True:
            queue.get_nowait()
    except Empty:
        return
