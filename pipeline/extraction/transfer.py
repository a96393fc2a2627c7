"""Batches between host and device: stacked once in a worker thread, copied beside the computation where there is a GPU.

On the CPU the same calls stack and return at once. Everything on CUDA is ordered by streams and events: the copy to
the device runs on a stream of its own, the computation waits for its event, and rows come back into pinned memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, overload

import numpy as np
import torch


class Stacked(Sequence[dict[str, np.ndarray]]):
    """Prepared images as one tensor [n, ...] a name; an element is the dict of arrays that it was made of.

    ``ready``: the CUDA event after which the tensors are on the device; None when they are in host memory.
    """

    def __init__(self, tensors: dict[str, torch.Tensor], ready: torch.cuda.Event | None = None):
        self.tensors, self.ready = tensors, ready

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    @overload
    def __getitem__(self, at: int) -> dict[str, np.ndarray]: ...
    @overload
    def __getitem__(self, at: slice) -> Stacked: ...
    def __getitem__(self, at: int | slice) -> dict[str, np.ndarray] | Stacked:
        if isinstance(at, slice):
            return Stacked({name: tensor[at] for name, tensor in self.tensors.items()}, self.ready)
        if at >= len(self):
            raise IndexError(at)
        if self.ready is not None:
            self.ready.synchronize()
        return {name: tensor[at].cpu().numpy() for name, tensor in self.tensors.items()}


def stack(parts: Sequence[Any], device: torch.device) -> Sequence[Any]:
    """``parts`` as ``Stacked`` where they are dicts of equal-shaped arrays (pixels), on their way to a CUDA ``device``.

    Anything else (token ids, images of several sizes) is given back as it is.
    """
    if not parts or not _alike(parts):
        return parts
    pin = device.type == "cuda"
    tensors = {}
    for name, first in parts[0].items():
        shape = (len(parts), *first.shape)
        tensors[name] = torch.empty(shape, dtype=torch.from_numpy(first[:0]).dtype, pin_memory=pin)
        np.stack([part[name] for part in parts], out=tensors[name].numpy())
    return _sent(Stacked(tensors), device) if pin else Stacked(tensors)


def _alike(parts: Sequence[Any]) -> bool:
    first = parts[0]
    if not isinstance(first, dict) or not first:
        return False
    want = {
        n: (a.shape, a.dtype) for n, a in first.items() if isinstance(a, np.ndarray) and a.ndim and a.dtype != object
    }
    return len(want) == len(first) and all(
        part.keys() == want.keys() and all((a.shape, a.dtype) == want[n] for n, a in part.items()) for part in parts
    )


def _sent(batch: Stacked, device: torch.device) -> Stacked:
    """The batch's copy to a CUDA device, begun on the copy stream. Where its memory is full the batch stays here."""
    stream = _copy_stream(device)
    try:
        with torch.cuda.stream(stream):
            moved = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.tensors.items()}
            event = torch.cuda.Event()
            event.record(stream)
    except torch.OutOfMemoryError:
        return batch  # the model's thread copies it, and halves the batch if need be
    return Stacked(moved, event)


@cache
def _copy_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


def to_device(images: Sequence[Any], device: torch.device, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Prepared images (dicts of arrays) as tensors [n, ...] on ``device``, floating ones as ``dtype``.

    On CUDA nothing waits: the current stream is made to wait for the copy.
    """
    batch = images if isinstance(images, Stacked) else None
    if batch is None:
        batch = Stacked({name: torch.from_numpy(np.stack([i[name] for i in images])) for name in images[0]})
    if batch.ready is not None:
        here = torch.cuda.current_stream(device)
        here.wait_event(batch.ready)
        for tensor in batch.tensors.values():
            tensor.record_stream(here)  # made on the copy stream: its memory is in use here too
    return {
        name: tensor.to(device, dtype if tensor.is_floating_point() else None, non_blocking=True)
        for name, tensor in batch.tensors.items()
    }


class PendingRows:
    """Finished rows [n, D] on their way to host memory. On the CPU they are there already."""

    def __init__(self, rows: torch.Tensor):
        self._done: torch.cuda.Event | None = None
        if rows.device.type == "cuda":
            self._host = torch.empty(rows.shape, dtype=rows.dtype, pin_memory=True)
            self._host.copy_(rows, non_blocking=True)
            self._done = torch.cuda.Event()
            self._done.record(torch.cuda.current_stream(rows.device))
        else:
            self._host = rows.cpu()

    def numpy(self) -> np.ndarray:
        """The rows; waits for the device."""
        if self._done is None:
            return self._host.numpy()
        self._done.synchronize()
        return self._host.numpy().copy()  # a shard's worth of rows should not hold pinned memory
