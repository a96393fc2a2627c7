"""Seeds without global side effects: what runs inside leaves the random state of the process as it was."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def derive_seed(seed: int, *words: object) -> int:
    """An independent seed for each purpose (``derive_seed(0, "order")``), the same on any machine. In [0, 2^63)."""
    text = "/".join(str(w) for w in (seed, *words))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


@contextmanager
def seeded(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """Seed the global generators of the CPU and of ``device``, and give their states back at the end."""
    devices = [device] if device is not None and device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.random.default_generator.manual_seed(seed)
        if devices:
            torch.cuda.manual_seed(seed)
        yield


@contextmanager
def flushed_denormals() -> Iterator[None]:
    """Round float32 subnormals to zero inside, on CPUs that can; give the setting back at the end.

    Attention weights and Adam's second moments fall below 1e-38, where a CPU computes many times slower.
    """
    before = _flushing()
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)


def _flushing() -> bool:
    """torch has no getter: a subnormal times one is zero exactly when subnormals are flushed."""
    return float(torch.tensor([1e-40], dtype=torch.float32).mul(1.0)) == 0.0


@contextmanager
def matmul_precision(precision: str) -> Iterator[None]:
    """Compute float32 products inside with ``precision`` ("highest", "high", "medium"), as torch names them.

    "high" is TF32 on a GPU, "medium" bfloat16 with float32 sums on a GPU, and on a CPU that has such instructions.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
