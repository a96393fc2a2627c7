"""Dropout with a replaceable source of random numbers, so that each run trained side by side draws its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from torch import Tensor
from torch.nn import functional as F

Source = Callable[[Tensor, float], Tensor]
_source: ContextVar[Source | None] = ContextVar("dropout", default=None)


def dropout(values: Tensor, rate: float, training: bool) -> Tensor:
    """Apply ``F.dropout``, or the source set by ``dropped_by``."""
    source = _source.get()
    if source is None or not training or not rate:
        return F.dropout(values, rate, training)
    return source(values, rate)


@contextmanager
def dropped_by(source: Source) -> Iterator[None]:
    """Compute every dropout inside the context with ``source(values, rate)``."""
    token = _source.set(source)
    try:
        yield
    finally:
        _source.reset(token)
