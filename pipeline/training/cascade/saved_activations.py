"""What a forward of the cascade keeps for its backward, in room that is taken once and used again."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor

from pipeline.training.cascade.cell import HeadWeights, MemoryRows
from pipeline.training.cascade.parameters import SCALARS, Shape
from pipeline.training.cascade.products import product

_LINE = 16  # single-precision numbers of a cache line


class Weights(NamedTuple):
    """What the cascade computes with, as ``StackedCascade`` lays it out; gate_bias [K, C, 4 H] is the sum of two."""

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
    """One turn of all stages. memory: [K, C, B, N, M] as it was read, or [K, C, 1, 1, M] where all rows are one.

    rows: the memory's rows as addressing needs them, None where all rows are one. read: where the read heads stand, as
    the chain of stages keeps it; read_weights: [K, C, B, N]. write: where the write heads stand [K, C, B, ..]; erase,
    add, write_key: [K, C, B, M]; the last turn has none of them.
    """

    memory: Tensor
    rows: MemoryRows | None
    read: Any = None
    read_weights: Tensor | None = None
    write: HeadWeights | None = None
    erase: Tensor | None = None
    add: Tensor | None = None
    write_key: Tensor | None = None

    @property
    def side_by_side(self) -> bool:
        """The rows are all equal, nothing is addressed by content, and the stages ran at once."""
        return self.rows is None


@dataclass
class SavedActivations:
    """Shapes: K runs, C stages, T turns, B sessions.

    features: [K, C, T, B, D], f_drv. states: [K, C, T + 1, B, M + H + 1], [r^c; h^c; 1], and cells: [K, C, T + 1, B, H];
    turn n finds its own at place n and leaves them at n + 1. The 1 is what a head's bias is multiplied with. gates: [K, C, T, B, 4 H] after their nonlinearities; squashed: the
    tanh of the new cells [K, C, T, B, H]. read_raw: [K, C, T, B, M + 6], the read head's key and scalars. memories:
    [T - 1, K, C, B, N, M], what each turn but the last left; d_memory and scratch: [K, C, B, N, M], for the backward.
    starts: [K, C, 2, N], the heads' learned first weights. constant: the one value that all memories start from, or None.
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
    uses: int = 0  # forwards so far: a backward must belong to the last one

    @property
    def length(self) -> int:
        """Number of turns, T."""
        return self.features.shape[2]

    @property
    def batch(self) -> int:
        """Number of sessions, B."""
        return self.features.shape[3]

    def arriving(self, c: int, n: int) -> Tensor:
        """r^{c-1}(n), which stage c reads in turn n: [K, B, M]. The first stage reads what the last one left before."""
        return (self.states[:, c - 1, n + 1] if c else self.states[:, -1, n])[..., : self.shape.width]

    def hidden(self, n: int) -> Tensor:
        """h^c(n) of all stages, once turn n is done: [K, C, B, H]."""
        return self.states[:, :, n + 1, :, self.shape.width : -1]

    def heads(self, weights: Weights, n: int, part: slice) -> Tensor:
        """Some of the heads' raw outputs in turn n, once its hidden states are there, of all stages: [K, C, B, part]."""
        return product(self.states[:, :, n + 1, :, self.shape.width :], weights.heads[..., part])

    def writing(self, n: int) -> slice:
        """The write heads' part of the heads' raw outputs in turn n, without the key where nothing is addressed by it."""
        lowest = self.shape.width + SCALARS
        return slice(lowest, lowest + SCALARS + (2 if self.turns[n].side_by_side else 3) * self.shape.width)

    @classmethod
    def empty(
        cls, shape: Shape, runs: int, turns: int, batch: int, like: Tensor, constant: float | None
    ) -> SavedActivations:
        """Room for a forward; all else is written before it is read."""
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
    """Room whose rows each begin at a cache line: a matrix product of others takes longer on a CPU."""
    return like.new_empty(*sizes[:-1], -(-sizes[-1] // _LINE) * _LINE)[..., : sizes[-1]]
