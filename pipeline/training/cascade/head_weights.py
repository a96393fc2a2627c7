"""Buffers of the compiled turns: addressing weights of heads, and the memory after a write."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.training.cascade.cell import HeadGradients, MemoryRows
from pipeline.training.cascade.saved_activations import SavedActivations, Turn


class CompiledHeadWeights(NamedTuple):
    """Addressing weights of the heads before and after the turn, and the cosines of key and rows, [K, C, B, N] each."""

    previous: Tensor
    cosines: Tensor
    weights: Tensor

    @classmethod
    def empty(cls, previous: Tensor) -> CompiledHeadWeights:
        """Allocate cosines and weights, not initialized."""
        previous = previous.contiguous()
        return cls(previous, torch.empty_like(previous), torch.empty_like(previous))

    def gradients(self) -> HeadGradients:
        """Allocate previous, dots and pull, not initialized."""
        return HeadGradients(*(torch.empty_like(self.previous) for _ in range(3)))


def own_memory(turn: Turn) -> MemoryRows:
    """Give each session a memory and norms of its own, and return them; in turn 1, sessions may share them."""
    turn.rows = MemoryRows(*(part.contiguous() for part in turn.rows))
    return turn.rows


def begin_write(saved: SavedActivations, n: int, raw: Tensor, previous: Tensor) -> MemoryRows:
    """Allocate the write heads' weights of turn n, and return the memory after it and its norms, not initialized."""
    turn, new = saved.turns[n], saved.memories[n]
    turn.write_raw, turn.write = raw.contiguous(), CompiledHeadWeights.empty(previous)
    own_memory(turn)
    saved.turns.append(Turn(MemoryRows(new, torch.empty_like(new[..., 0]))))
    return saved.turns[-1].rows
