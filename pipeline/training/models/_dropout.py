"""Dropout whose random numbers another part of the program may draw: runs side by side each keep their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from torch import Tensor
from torch.nn import functional as F

Source = Callable[[Tensor, float], Tensor]
_source: ContextVar[Source | None] = ContextVar("dropout", default=None)


def dropout(values: Tensor, rate: float, training: bool) -> Tensor:
    """``F.dropout``, or what the source of ``dropped_by`` makes of the values."""
    source = _source.get()
    if source is None or not training or not rate:
        return F.dropout(values, rate, training)
    return source(values, rate)


@contextmanager
def dropped_by(source: Source) -> Iterator[None]:
    """Inside, ``source(values, rate)`` computes every dropout."""
    token = _source.set(source)
    try:
        yield
    finally:
        _source.reset(token)
