"""Exponential moving average (EMA) of the weights, which replaces the last step's weights for validation and saving."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor


class WeightAverage:
    """Average of weights and of statistics such as those of batch normalization, with ``decay`` per step.

    It starts with the values of the first step. A decay of 0 turns averaging off. values: the averages, in the order of
    the tensors; empty before the first step, or without averaging.
    """

    def __init__(self, tensors: Sequence[Tensor], decay: float):
        self._tensors = [t.detach() for t in tensors if t.is_floating_point()] if decay else []
        self._decay = decay
        self.values: list[Tensor] = []

    def started(self) -> list[Tensor]:
        """Return the averages, which start with the current values; empty without averaging."""
        if not self.values:
            self.values = [t.clone() for t in self._tensors]
        return self.values

    @torch.no_grad()
    def update(self) -> None:
        """Add the current values to the average, after a step."""
        if self.values:
            torch._foreach_lerp_(self.values, self._tensors, 1 - self._decay)
        else:
            self.started()

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Set the tensors to their averages inside the context, and restore them afterwards."""
        held = [t.clone() for t in self._tensors] if self.values else []
        if held:
            torch._foreach_copy_(self._tensors, self.values)
        try:
            yield
        finally:
            if held:
                torch._foreach_copy_(self._tensors, held)

    @torch.no_grad()
    def keep(self) -> None:
        """Set the tensors to their averages permanently."""
        if self.values:
            torch._foreach_copy_(self._tensors, self.values)
