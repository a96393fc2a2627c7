"""The compute device, the time of a call on it, out-of-memory errors, and CPU threads."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from manifests.errors import FashionNTMError

KINDS = ("auto", "cpu", "cuda", "mps")


class DeviceError(FashionNTMError):
    """The requested device is unknown or not available."""


def available() -> tuple[str, ...]:
    """Return the devices of this machine, the preferred one first."""
    cuda = [f"cuda:{n}" for n in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    mps = ["mps"] if torch.backends.mps.is_available() else []
    return (*cuda, *mps, "cpu")


def resolve_device(name: str = "auto") -> torch.device:
    """Return the device ``name``; ``auto``: the first available of CUDA, MPS, CPU. Raises DeviceError listing these."""
    found = available()
    if name == "auto":
        return torch.device(found[0])
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in KINDS:
        raise DeviceError(f"unknown device {name!r}: use one of {', '.join(KINDS)}, or cuda:0, cuda:1, ...")
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", 0)
    if str(device) not in found:
        what = f"device {name!r} is not available here"
        raise DeviceError(f"{what}: this machine has {', '.join(found)} (try --device auto)")
    return device


def describe(device: torch.device) -> str:
    """Return a name for records, such as ``cuda:0 (NVIDIA H100 80GB HBM3)``."""
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)


def seconds_of(call: Callable[[], object], device: torch.device) -> float:
    """Return the seconds of ``call`` until ``device`` has finished its work."""
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    call()
    if cuda:
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def is_out_of_memory(error: BaseException) -> bool:
    """Return True for out-of-memory errors of CUDA, MPS and the CPU allocator (which raises a plain RuntimeError)."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    signs = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(error, RuntimeError) and any(sign in text for sign in signs)


def free_memory(device: torch.device) -> None:
    """Release cached blocks after an out-of-memory error, so that a smaller batch can use the memory."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


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
