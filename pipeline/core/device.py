"""Choice of the compute device, the time of a call on it, and detection of out-of-memory errors."""

from __future__ import annotations

import time
from collections.abc import Callable

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
        raise DeviceError(
            f"device {name!r} is not available here: this machine has {', '.join(found)} (try --device auto)"
        )
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
