"""Buffers for the addressing weights of heads in compiled loops and kernels."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.training.cascade.cell import HeadGradients
from pipeline.training.cascade.saved_activations import Turn


class CompiledHeadWeights(NamedTuple):
    """Addressing weights of the heads before and after the turn, and the cosines of key and rows, [K, C, B, N] each.

    raw: [K, C, B, ..], raw outputs of the write head, with the erase vector after its sigmoid.
    """

    previous: Tensor
    cosines: Tensor
    weights: Tensor
    raw: Tensor | None = None

    @classmethod
    def room(cls, previous: Tensor, raw: Tensor | None = None) -> CompiledHeadWeights:
        """Allocate cosines and weights, not initialized."""
        previous = previous.contiguous()
        return cls(previous, torch.empty_like(previous), torch.empty_like(previous), raw)

    def gradients(self) -> HeadGradients:
        """Allocate previous, dots and pull, not initialized."""
        return HeadGradients(*(torch.empty_like(self.previous) for _ in range(3)))


def rows_of(turn: Turn, stood: CompiledHeadWeights) -> tuple[Tensor, Tensor]:
    """Return memory and row norms; if the memory is stored as one row, the norms are a placeholder that is not read."""
    return turn.memory.contiguous(), stood.cosines if turn.rows is None else turn.rows.norms
