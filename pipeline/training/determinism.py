"""Seeds and numeric settings as context managers, which restore the state of the process."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def derive_seed(seed: int, *words: object) -> int:
    """Return an independent seed in [0, 2^63) for each purpose (``derive_seed(0, "order")``), equal on any machine."""
    text = "/".join(str(w) for w in (seed, *words))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


@contextmanager
def seeded(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """Seed the global generators of the CPU and of ``device`` inside the context, and restore their states."""
    devices = [device] if device is not None and device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.random.default_generator.manual_seed(seed)
        if devices:
            torch.cuda.manual_seed(seed)
        yield


@contextmanager
def flushed_denormals() -> Iterator[None]:
    """Flush float32 subnormals to zero inside the context, on CPUs that support it, and restore the setting.

    Attention weights and Adam's second moments fall below 1e-38, where CPUs are many times slower.
    """
    before = _flushing()
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)


def _flushing() -> bool:
    """Return whether subnormals are flushed. torch has no getter, so this multiplies a subnormal by one."""
    return float(torch.tensor([1e-40], dtype=torch.float32).mul(1.0)) == 0.0


@contextmanager
def matmul_precision(precision: str) -> Iterator[None]:
    """Set the precision of float32 matrix products inside the context: torch's "highest", "high" or "medium".

    "high" is TF32 on a GPU; "medium" is bfloat16 with float32 sums on a GPU, and on a CPU with such instructions.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
