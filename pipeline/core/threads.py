"""CPU threads: the number for training."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def training_threads(asked: int | None = None) -> int:
    """Return ``asked``, OMP_NUM_THREADS or one. Never measured, because the number changes the rounding of sums."""
    value = os.environ.get("OMP_NUM_THREADS", "")
    return asked or (int(value) if value.isdecimal() else 0) or 1


@contextmanager
def cpu_threads(count: int) -> Iterator[None]:
    """Context manager that computes on ``count`` threads and restores the previous number on exit."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def doublings(limit: int) -> tuple[int, ...]:
    """Return 1, 2, 4, ... and ``limit``."""
    return tuple(sorted({*(2**n for n in range(limit.bit_length())), limit}))
