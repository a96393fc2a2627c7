"""What the compiled turns share: buffers for the addressing weights of heads, and the order of a write."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.training.cascade.cell import HeadGradients, MemoryRows
from pipeline.training.cascade.saved_activations import SavedActivations, Turn


class CompiledHeadWeights(NamedTuple):
    """Addressing weights of the heads before and after the turn, and the cosines of key and rows, [K, C, B, N] each.

    raw: [K, C, B, ..], raw outputs of the write head, with the erase vector after its sigmoid.
    """

    previous: Tensor
    cosines: Tensor
    weights: Tensor
    raw: Tensor | None = None

    @classmethod
    def empty(cls, previous: Tensor, raw: Tensor | None = None) -> CompiledHeadWeights:
        """Allocate cosines and weights, not initialized."""
        previous = previous.contiguous()
        return cls(previous, torch.empty_like(previous), torch.empty_like(previous), raw)

    def gradients(self) -> HeadGradients:
        """Allocate previous, dots and pull, not initialized."""
        return HeadGradients(*(torch.empty_like(self.previous) for _ in range(3)))


def rows_of(turn: Turn, head: CompiledHeadWeights) -> tuple[Tensor, Tensor]:
    """Return memory and row norms; if the memory is stored as one row, the norms are a placeholder that is not read."""
    return turn.memory.contiguous(), head.cosines if turn.rows is None else turn.rows.norms


def own_memory(turn: Turn) -> None:
    """Give each session a memory and norms of its own; in turn 1, sessions may share them."""
    turn.memory = turn.memory.contiguous()
    turn.rows = MemoryRows(turn.memory, turn.rows.norms.contiguous())


class CompiledWrites(ABC):
    """``write`` and ``write_backward`` of a turn whose heads are ``CompiledHeadWeights``."""

    def write(self, saved: SavedActivations, n: int, raw: Tensor, previous: Tensor) -> None:
        turn, new = saved.turns[n], saved.memories[n]
        turn.write = CompiledHeadWeights.empty(previous, raw.contiguous())
        norms = torch.empty_like(new[..., 0])
        self._write(saved, turn, turn.write, new, norms)
        saved.turns.append(Turn(new, MemoryRows(new, norms)))

    def write_backward(self, saved: SavedActivations, n: int, at: Tensor, d_raws: Tensor) -> HeadGradients:
        head = saved.turns[n].write
        found = head.gradients()
        self._write_backward(saved, n, head, at, d_raws, found)
        return found

    @abstractmethod
    def _write(
        self, saved: SavedActivations, turn: Turn, head: CompiledHeadWeights, new: Tensor, norms: Tensor
    ) -> None:
        """Fill ``head``, the new memories [K, C, B, N, M] and their norms [K, C, B, N]."""

    @abstractmethod
    def _write_backward(
        self,
        saved: SavedActivations,
        n: int,
        head: CompiledHeadWeights,
        at: Tensor,
        d_raws: Tensor,
        found: HeadGradients,
    ) -> None:
        """Fill turn n of ``d_raws``, and ``found`` (see ``TurnOps.write_backward``)."""
