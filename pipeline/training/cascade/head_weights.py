"""Where heads stand, as compiled loops and kernels keep it: both write into room that is made here."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.training.cascade.cell import HeadGradients
from pipeline.training.cascade.saved_activations import Turn


class CompiledHeadWeights(NamedTuple):
    """Where the heads stood before and stand now, and the cosines of key and rows, [K, C, B, N]; raw: what the write head
    was told, [K, C, B, ..], the erase vector in its range."""

    previous: Tensor
    cosines: Tensor
    weights: Tensor
    raw: Tensor | None = None

    @classmethod
    def room(cls, previous: Tensor, raw: Tensor | None = None) -> CompiledHeadWeights:
        """Cosines and weights are to be written."""
        previous = previous.contiguous()
        return cls(previous, torch.empty_like(previous), torch.empty_like(previous), raw)

    def gradients(self) -> HeadGradients:
        """Room for previous, dots and pull."""
        return HeadGradients(*(torch.empty_like(self.previous) for _ in range(3)))


def rows_of(turn: Turn, stood: CompiledHeadWeights) -> tuple[Tensor, Tensor]:
    """Memory and norms; where all rows are one there are no norms, and nothing reads them."""
    return turn.memory.contiguous(), stood.cosines if turn.rows is None else turn.rows.norms
