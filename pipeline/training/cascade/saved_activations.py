"""Activations of the cascade's forward pass saved for its backward pass, in buffers allocated once."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor

from pipeline.training.cascade.cell import MemoryRows
from pipeline.training.cascade.parameters import SCALARS, Shape
from pipeline.training.cascade.products import product

_LINE = 16  # float32 values per cache line


class Weights(NamedTuple):
    """Weights of the cascade in the layout of ``StackedCascade``; gate_bias [K, C, 4 H] is the sum of both biases."""

    from_previous: Tensor
    from_feature: Tensor
    from_own: Tensor
    gate_bias: Tensor
    heads: Tensor
    state: Tensor
    cell: Tensor
    start: Tensor
    memory: Tensor


@dataclass
class Turn:
    """One turn of all stages.

    rows: the memory before the turn's write. side_by_side: all rows are equal and given as one, [K, C, 1, 1, M], with
    placeholders for their norms; the stages run at once, without content addressing. read, write: values that the
    implementation saves of its heads; write.weights and read_weights: [K, C, B, N]. write_raw: [K, C, B, 3 M + 6], raw
    outputs of the write heads, with erase after its sigmoid. The last turn has no write.
    """

    rows: MemoryRows
    side_by_side: bool = False
    read: Any = None
    read_weights: Tensor = field(init=False)
    write: Any = None
    write_raw: Tensor = field(init=False)


@dataclass
class SavedActivations:
    """Saved activations. Shapes: K runs, C stages, T turns, B sessions.

    features: [K, C, T, B, D], f_drv.
    states: [K, C, T + 1, B, M + H + 1], [r^c; h^c; 1], and cells: [K, C, T + 1, B, H]; index n is before turn n, index
    n + 1 after it. The 1 is multiplied with a head's bias.
    gates: [K, C, T, B, 4 H], after their nonlinearities. squashed: [K, C, T, B, H], the tanh of the new cells.
    read_raw: [K, C, T, B, M + 6], the read head's key and scalars.
    memories: [T - 1, K, C, B, N, M], after each turn but the last.
    d_memory, scratch: [K, C, B, N, M], buffers of the backward pass.
    starts: [K, C, 2, N], the heads' learned initial weights.
    constant: the initial value of all memories, or None.
    """

    shape: Shape
    constant: float | None
    features: Tensor
    states: Tensor
    cells: Tensor
    gates: Tensor
    squashed: Tensor
    read_raw: Tensor
    memories: Tensor
    d_memory: Tensor
    scratch: Tensor
    starts: Tensor
    turns: list[Turn] = field(default_factory=list)
    uses: int = 0  # forward passes so far: a backward pass must belong to the last one

    @property
    def length(self) -> int:
        """Number of turns, T."""
        return self.features.shape[2]

    @property
    def batch(self) -> int:
        """Number of sessions, B."""
        return self.features.shape[3]

    def stage_input(self, c: int, n: int) -> Tensor:
        """Return r^{c-1}(n), the input of stage c in turn n: [K, B, M]; r^C(n-1) for the first stage."""
        return (self.states[:, c - 1, n + 1] if c else self.states[:, -1, n])[..., : self.shape.width]

    def hidden(self, n: int) -> Tensor:
        """Return h^c(n) of all stages after turn n: [K, C, B, H]."""
        return self.states[:, :, n + 1, :, self.shape.width : -1]

    def heads(self, weights: Weights, n: int, part: slice) -> Tensor:
        """Compute the columns ``part`` of the heads' raw outputs in turn n from its hidden states: [K, C, B, part]."""
        return product(self.states[:, :, n + 1, :, self.shape.width :], weights.heads[..., part])

    def writing(self, n: int) -> slice:
        """Return the columns of the write heads in the raw outputs of turn n, without the key if it is not needed."""
        lowest = self.shape.width + SCALARS
        return slice(lowest, lowest + SCALARS + (2 if self.turns[n].side_by_side else 3) * self.shape.width)

    @classmethod
    def empty(
        cls, shape: Shape, runs: int, turns: int, batch: int, like: Tensor, constant: float | None
    ) -> SavedActivations:
        """Allocate the buffers of a forward pass; only the last column of ``states``, the 1, is initialized."""
        lead, width, hidden = (runs, shape.stages), shape.width, shape.hidden

        def room(*sizes: int) -> Tensor:
            return like.new_empty(sizes)

        states = aligned(like, *lead, turns + 1, batch, width + hidden + 1)
        states[..., -1] = 1
        return cls(
            shape=shape,
            constant=constant,
            features=room(*lead, turns, batch, shape.dim),
            states=states,
            cells=room(*lead, turns + 1, batch, hidden),
            gates=room(*lead, turns, batch, 4 * hidden),
            squashed=room(*lead, turns, batch, hidden),
            read_raw=aligned(like, *lead, turns, batch, width + SCALARS),
            memories=room(turns - 1, *lead, batch, shape.slots, width),
            d_memory=room(*lead, batch, shape.slots, width),
            scratch=room(*lead, batch, shape.slots, width),
            starts=room(*lead, 2, shape.slots),
        )


def aligned(like: Tensor, *sizes: int) -> Tensor:
    """Allocate a tensor with rows aligned to cache lines; matrix products of unaligned rows are slower on a CPU."""
    return like.new_empty(*sizes[:-1], -(-sizes[-1] // _LINE) * _LINE)[..., : sizes[-1]]
