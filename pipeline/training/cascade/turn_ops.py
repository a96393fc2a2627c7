"""Interface of the operations of a turn (in torch, numba and Triton), and the buffers of the compiled ones."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from pipeline.training.cascade.cell import HeadGradients, MemoryRows
from pipeline.training.cascade.saved_activations import SavedActivations, Turn, Weights


class GradIn(NamedTuple):
    """Gradients at the output of a turn, without those of its own chain of stages, and buffers to fill.

    state: [K, C, B, M + H], with the views read and hidden; cell: [K, C, B, H]; read_at: [K, C, B, N], of the read
    heads' weights. The chain may add its own gradients in place; to ``read`` it must add them. writing: of the turn's
    write, None for the last. Buffers: d_gates, [K, C, B, 4 H]; d_raws, [K, C, T, B, M + 6], of the read heads' outputs.
    """

    state: Tensor
    read: Tensor
    hidden: Tensor
    cell: Tensor
    read_at: Tensor
    writing: HeadGradients | None
    d_gates: Tensor
    d_raws: Tensor


class GradOut(NamedTuple):
    """Gradients returned by the chain's backward pass, of values before the turn.

    previous: [K, C, B, N], of the read heads' weights; cell: [K, C, B, H], of the cells; first: [K, B, M], of r^0(n).
    """

    previous: Tensor
    cell: Tensor
    first: Tensor


class TurnOps(Protocol):
    """Operations of one turn of all stages.

    ``forward`` and ``backward`` compute the chain of stages, r^{c-1}(n) -> gates -> read head -> r^c(n), unless these
    run side by side in this turn; ``write`` and ``write_backward`` are called for every turn but the last.
    """

    def forward(self, saved: SavedActivations, weights: Weights, n: int, previous: Tensor) -> None:
        """Compute gates, squashed and read_raw of turn n, and cells and states at index n + 1.

        The turn's memory and the parts of the gates that do not depend on the chain are already computed. ``previous``:
        [K, C, B, N], addressing weights of the read heads after turn n - 1.
        """

    def write(self, saved: SavedActivations, n: int, raw: Tensor, previous: Tensor) -> None:
        """Erase and add; append the memories after turn n to ``saved.turns`` as the next turn.

        ``raw``: [K, C, B, 3 M + 6], the write head's scalars, erase, add and key (no key if the stages run side by
        side); may be overwritten. ``previous``: as above, of the write heads.
        """

    def write_backward(self, saved: SavedActivations, n: int, at: Tensor, d_raws: Tensor) -> HeadGradients:
        """Compute turn n of ``d_raws`` [K, C, T - 1, B, 3 M + 6] from ``saved.d_memory``, of the memories after turn n.

        ``at``: [K, C, B, N], gradient of the write heads' weights; may be overwritten.
        """

    def backward(self, saved: SavedActivations, weights: Weights, n: int, grad_in: GradIn) -> GradOut:
        """Compute ``grad_in.d_gates`` and turn n of ``d_raws``; set ``saved.d_memory`` to that before turn n."""


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
