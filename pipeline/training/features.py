"""A table of a store as one tensor, on any device, in one call."""

from __future__ import annotations

import torch
from torch import Tensor

from cache import Store

_BLOCK = 1 << 24  # bytes that are on their way to a device at a time


def load_table(
    store: Store,
    table: str,
    device: str | torch.device = "cpu",
    *,
    dtype: torch.dtype | None = None,
    pinned: bool = False,
) -> Tensor:
    """All features of ``table`` as a tensor [rows, D] on ``device``; ``dtype``: the stored one unless given.

    On the CPU the rows are read straight into the tensor's memory (``pinned``: page-locked, for later copies to a GPU).
    On an accelerator they go through two page-locked blocks, one being read while the other is copied: the host never
    holds the table. Raises what ``Store.load`` raises, and RuntimeError when the device cannot hold the table.
    """
    info, device = store.table(table), torch.device(device)
    stored = getattr(torch, info.dtype)
    pinned = pinned and torch.cuda.is_available()  # without an accelerator page-locked memory has no use
    found = torch.empty(
        (info.rows, info.dim), dtype=dtype or stored, device=device, pin_memory=pinned and device.type == "cpu"
    )
    if device.type == "cpu" and found.dtype == stored:
        store.load(table, out=found.numpy())
        return found
    return _by_blocks(store, table, found, stored)


def _by_blocks(store: Store, table: str, found: Tensor, stored: torch.dtype, size: int = _BLOCK) -> Tensor:
    """Fill ``found`` [rows, D] through blocks of the host's memory of ``size`` bytes."""
    cuda = found.device.type == "cuda"
    rows = max(1, min(len(found), size // (found.shape[1] * stored.itemsize)))
    buffers = [torch.empty((rows, found.shape[1]), dtype=stored, pin_memory=cuda) for _ in range(2)]
    copied = [torch.cuda.Event() for _ in buffers] if cuda else []
    for turn, start in enumerate(range(0, len(found), rows)):
        buffer = buffers[turn % 2][: len(found) - start]
        if cuda and turn > 1:
            copied[turn % 2].synchronize()  # what this buffer held before is on the device
        store.read(table, start, buffer.numpy())
        found[start : start + rows].copy_(buffer, non_blocking=cuda)
        if cuda:
            copied[turn % 2].record()
    if cuda:
        torch.cuda.current_stream(found.device).synchronize()
    return found
