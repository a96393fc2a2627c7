"""Random states of runs that train side by side: each draws what it would draw alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from pipeline.training.determinism import seeded


class RunRandom:
    """K random states on one device, seeded once an epoch; inside ``of(k)`` torch's own generators are in run k's."""

    def __init__(self, seeds: Sequence[int], device: torch.device):
        self._device = device
        self._states = []
        for seed in seeds:
            with seeded(seed, device):
                self._states.append(self._now())

    @contextmanager
    def of(self, run: int) -> Iterator[None]:
        """Draw as run ``run``; the process's own states are back afterwards."""
        before = self._now()
        self._set(self._states[run])
        try:
            yield
        finally:
            self._states[run] = self._now()
            self._set(before)

    def _now(self) -> list[torch.Tensor]:
        states = [torch.get_rng_state()]
        if self._device.type == "cuda":
            states.append(torch.cuda.get_rng_state(self._device))
        return states

    def _set(self, states: list[torch.Tensor]) -> None:
        torch.set_rng_state(states[0])
        if self._device.type == "cuda":
            torch.cuda.set_rng_state(states[1], self._device)
