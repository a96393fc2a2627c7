"""What worker threads do: read, decode and tokenise items ahead of the model, within a bounded window."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pipeline.extraction.extractors.base import Extractor
from pipeline.extraction.images import ItemError, decode, read
from pipeline.extraction.meter import Meter
from pipeline.extraction.work import Item

A, B = TypeVar("A"), TypeVar("B")


@dataclass(frozen=True)
class ItemFailure:
    """An item without a row: ``stage`` is "read", "decode", "tokenise" or "encode"."""

    item: Item
    stage: str
    reason: str


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


def prepare(extractor: Extractor, items: Sequence[Item], root: Path | None, meter: Meter) -> list[Any]:
    """For each item its prepared parts (image, text; those it has), or an ItemFailure. Runs in worker threads."""
    parts: list[list[Any] | ItemFailure] = [[] for _ in items]
    for n, item in enumerate(items):
        if item.file is not None:
            assert root is not None
            with meter.time("decode"):
                parts[n] = _pixels(extractor, item, root)
    with meter.time("tokenise"):
        for texts in ([item.caption for item in items], [item.text for item in items]):
            have = [n for n, t in enumerate(texts) if t is not None and not isinstance(parts[n], ItemFailure)]
            ready = _texts(extractor, [texts[n] for n in have], [items[n] for n in have])
            for n, found in zip(have, ready, strict=True):
                parts[n] = found if isinstance(found, ItemFailure) else [*parts[n], found]  # type: ignore[misc]
    return parts


def _pixels(extractor: Extractor, item: Item, root: Path) -> list[Any] | ItemFailure:
    assert item.file is not None
    try:
        return [extractor.prepare(decode(read(root, item.file, item.image)))]
    except ItemError as error:
        return ItemFailure(item, error.stage, error.reason)
    except Exception as error:  # an image whose shape the model's own preprocessing does not take
        return ItemFailure(item, "decode", f"preprocessing failed: {one_line(error)}")


def _texts(extractor: Extractor, texts: Sequence[Any], items: Sequence[Item]) -> list[Any]:
    try:
        return extractor.prepare_texts(texts)
    except Exception as error:
        if len(texts) == 1:
            return [ItemFailure(items[0], "tokenise", one_line(error))]
        return [_texts(extractor, [t], [i])[0] for t, i in zip(texts, items, strict=True)]


def one_line(error: BaseException) -> str:
    """An error as a reason for the ledger."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
