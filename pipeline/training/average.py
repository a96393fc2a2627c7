"""A running average of the weights (EMA), which is validated and kept in place of the last step's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor


class WeightAverage:
    """Average of weights and of statistics such as a batch normalisation's, with ``decay`` a step.

    The first step's values start it. A decay of 0 averages nothing.
    """

    def __init__(self, tensors: Sequence[Tensor], decay: float):
        self._tensors = [t.detach() for t in tensors if t.is_floating_point()] if decay else []
        self._decay = decay
        self._average: list[Tensor] = []

    @torch.no_grad()
    def update(self) -> None:
        """Take the values after a step in."""
        if self._average:
            torch._foreach_lerp_(self._average, self._tensors, 1 - self._decay)
        else:
            self._average = [t.clone() for t in self._tensors]

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the tensors hold the averages; afterwards what they held before."""
        held = [t.clone() for t in self._tensors] if self._average else []
        if held:
            torch._foreach_copy_(self._tensors, self._average)
        try:
            yield
        finally:
            if held:
                torch._foreach_copy_(self._tensors, held)

    @torch.no_grad()
    def keep(self) -> None:
        """Leave the averages in the tensors for good."""
        if self._average:
            torch._foreach_copy_(self._tensors, self._average)
