"""Random states of runs trained side by side; each run draws the same numbers as when it is trained alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from pipeline.training.determinism import seeded


class RunRandom:
    """K random states on one device, seeded once per epoch; inside ``of(k)``, torch's generators have run k's state."""

    def __init__(self, seeds: Sequence[int], device: torch.device):
        self._device = device
        self._states = []
        for seed in seeds:
            with seeded(seed, device):
                self._states.append(self._now())

    @contextmanager
    def of(self, run: int) -> Iterator[None]:
        """Use the random state of run ``run`` inside the context, and restore the state of the process."""
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
