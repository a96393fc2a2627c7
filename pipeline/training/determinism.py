"""Seeds, random states and numeric settings as context managers, which restore the state of the process."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
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


class RunRandom:
    """Random states of K runs trained side by side, on one device, seeded once per epoch.

    Inside ``of(k)``, torch's generators have run k's state: it draws the same numbers as when it is trained alone.
    """

    def __init__(self, seeds: Sequence[int], device: torch.device):
        self._devices = [device] if device.type == "cuda" else []
        self._states = []
        for seed in seeds:
            with seeded(seed, device):
                self._states.append(self._now())

    @contextmanager
    def of(self, run: int) -> Iterator[None]:
        """Use the random state of run ``run`` inside the context, and restore the state of the process."""
        own, *others = self._states[run]
        with torch.random.fork_rng(devices=self._devices):
            torch.set_rng_state(own)
            for device, state in zip(self._devices, others, strict=True):
                torch.cuda.set_rng_state(state, device)
            yield
            self._states[run] = self._now()

    def _now(self) -> list[torch.Tensor]:
        return [torch.get_rng_state(), *map(torch.cuda.get_rng_state, self._devices)]


@contextmanager
def flushed_denormals() -> Iterator[None]:
    """Flush float32 subnormals to zero inside the context, on CPUs that support it, and restore the setting.

    Attention weights and Adam's second moments fall below 1e-38, where CPUs are many times slower.
    """
    # torch has no getter, so this multiplies a subnormal by one
    before = float(torch.tensor([1e-40], dtype=torch.float32).mul(1.0)) == 0.0
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)


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
