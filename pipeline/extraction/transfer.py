"""Transfer of batches between host and device: stacked in a worker thread, on a GPU copied during computation.

On the CPU the same calls stack and return at once. On CUDA, streams and events order all operations: the copy to the
device uses a separate stream, the computation waits for its event, and rows are copied back to pinned memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import torch


class Stacked(Sequence[Any]):
    """Prepared images as one tensor [n, ...] per name; an element is the dict of arrays of one image.

    ``ready``: the CUDA event after which the tensors are on the device; None if they are in host memory.
    """

    def __init__(self, tensors: dict[str, torch.Tensor], ready: torch.cuda.Event | None = None):
        self.tensors, self.ready = tensors, ready

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def __getitem__(self, at: Any) -> Any:
        if isinstance(at, slice):
            return Stacked({name: tensor[at] for name, tensor in self.tensors.items()}, self.ready)
        if at >= len(self):
            raise IndexError(at)
        if self.ready is not None:
            self.ready.synchronize()
        return {name: tensor[at].cpu().numpy() for name, tensor in self.tensors.items()}


def stack(parts: Sequence[Any], device: torch.device) -> Sequence[Any]:
    """Stack dicts of equal-shaped arrays (pixels) and start copying them to a CUDA ``device``; return ``Stacked``.

    Dicts of tensors made on the copy stream (see ``copying``) are stacked on it, with arrays among them copied. Other
    parts (token ids, images of several sizes) are returned unchanged.
    """
    if any(isinstance(p, dict) and any(isinstance(v, torch.Tensor) for v in p.values()) for p in parts):
        return _stacked_on_device(parts, device)
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
    arrays = {n: a for n, a in first.items() if isinstance(a, np.ndarray) and a.ndim and a.dtype != object}
    want = {n: (a.shape, a.dtype) for n, a in arrays.items()}
    return len(want) == len(first) and all(
        part.keys() == want.keys() and all((a.shape, a.dtype) == want[n] for n, a in part.items()) for part in parts
    )


def _sent(batch: Stacked, device: torch.device) -> Stacked:
    """Start copying the batch to a CUDA device on the copy stream; keep it on the host if device memory is full."""
    try:
        with copying(device) as stream:
            moved = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.tensors.items()}
            return Stacked(moved, _event(stream))
    except torch.OutOfMemoryError:
        return batch  # the model's thread copies it, and halves the batch if necessary


def _stacked_on_device(parts: Sequence[dict[str, Any]], device: torch.device) -> Sequence[Any]:
    """Stack pixels of which some are on the device already; unchanged if they differ in size or memory is full."""
    try:
        with copying(device) as stream:
            tensors = {n: torch.stack([torch.as_tensor(p[n]).to(device) for p in parts]) for n in parts[0]}
            return Stacked(tensors, _event(stream))
    except RuntimeError:  # torch.OutOfMemoryError is one
        return parts


def _event(stream: torch.cuda.Stream | None) -> torch.cuda.Event | None:
    """Record an event after the work queued on ``stream``; None for the CPU's None."""
    return stream.record_event() if stream is not None else None


@contextmanager
def copying(device: torch.device) -> Iterator[torch.cuda.Stream | None]:
    """Queue the work on a CUDA ``device`` on the copy stream, beside the model's; elsewhere change nothing."""
    stream = _copy_stream(device) if device.type == "cuda" else None
    with torch.cuda.stream(stream):  # does nothing for None
        yield stream


@cache
def _copy_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


def to_device(images: Sequence[Any], device: torch.device, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Return prepared images (dicts of arrays) as tensors [n, ...] on ``device``, floating-point ones as ``dtype``.

    Does not block on CUDA: the current stream waits for the copy.
    """
    if not isinstance(images, Stacked):
        images = Stacked({name: torch.stack([torch.as_tensor(image[name]) for image in images]) for name in images[0]})
    if images.ready is not None:
        here = torch.cuda.current_stream(device)
        here.wait_event(images.ready)
        for tensor in images.tensors.values():
            tensor.record_stream(here)  # allocated on the copy stream, also used on this one
    kinds = {name: dtype if tensor.is_floating_point() else None for name, tensor in images.tensors.items()}
    return {name: tensor.to(device, kinds[name], non_blocking=True) for name, tensor in images.tensors.items()}


class PendingRows:
    """Computed rows [n, D] during their copy to host memory (on the CPU without a copy)."""

    def __init__(self, rows: torch.Tensor):
        self._done: torch.cuda.Event | None = None
        if rows.device.type == "cuda":
            self._host = torch.empty(rows.shape, dtype=rows.dtype, pin_memory=True)
            self._host.copy_(rows, non_blocking=True)
            self._done = torch.cuda.current_stream(rows.device).record_event()
        else:
            self._host = rows.cpu()

    def numpy(self) -> np.ndarray:
        """Wait for the device and return the rows."""
        if self._done is None:
            return self._host.numpy()
        self._done.synchronize()
        return self._host.numpy().copy()  # releases the pinned memory
