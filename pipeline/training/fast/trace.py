"""What a forward of the cascade keeps for its backward, in room that is taken once and used again."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor

from pipeline.training.fast.cell import Stand
from pipeline.training.fast.parameters import SCALARS, Shape


class Weights(NamedTuple):
    """What the cascade computes with, as ``StackedCascade`` lays it out; gate_bias [K, C, 4 H] is the sum of two."""

    controller: Tensor
    gate_bias: Tensor
    heads: Tensor
    head_bias: Tensor
    hidden: Tensor
    cell: Tensor
    read: Tensor
    start: Tensor
    memory: Tensor


@dataclass
class Turn:
    """One turn of all stages. memory: [K, C, B, N, M] as it was read, with the norms of its rows [K, C, B, N].

    read: where the read heads stand, as the chain of stages keeps it; read_weights: [K, C, B, N].
    write: where the write heads stand [K, C, B, ..]; erase, add, write_key: [K, C, B, M]; the last turn has none of them.
    """

    memory: Tensor
    norms: Tensor | None
    read: Any = None
    read_weights: Tensor | None = None
    write: Stand | None = None
    erase: Tensor | None = None
    add: Tensor | None = None
    write_key: Tensor | None = None

    @property
    def side_by_side(self) -> bool:
        """The rows are all equal, nothing is addressed by content, and the stages ran at once."""
        return self.norms is None


@dataclass
class Trace:
    """Shapes: K runs, C stages, T turns, B sessions. I = 2 M + D + H, the width of a controller's input.

    inputs: [K, C, T, B, I], [r^{c-1}; f_drv; r^c; h]. gates: [K, C, T, B, 4 H] after their nonlinearities. cells:
    [K, C, T + 1, B, H], the first from before turn 1; squashed: their tanh [K, C, T, B, H]; hidden likewise.
    reads: [K, C, T, B, M], r^c(n). read_raw: [K, C, T, B, M + 6], the read head's key and scalars.
    starts: [K, C, 2, N], the heads' learned first weights. constant: the one value that all memories start from, or None.
    """

    shape: Shape
    constant: float | None
    inputs: Tensor
    gates: Tensor
    cells: Tensor
    squashed: Tensor
    hidden: Tensor
    reads: Tensor
    read_raw: Tensor
    starts: Tensor
    turns: list[Turn] = field(default_factory=list)
    uses: int = 0  # forwards so far: a backward must belong to the last one

    @property
    def length(self) -> int:
        """Number of turns, T."""
        return self.inputs.shape[2]

    @classmethod
    def empty(cls, shape: Shape, runs: int, turns: int, batch: int, like: Tensor, constant: float | None) -> Trace:
        """Room for a forward; every element is written before it is read."""
        lead, width, hidden = (runs, shape.stages), shape.width, shape.hidden

        def room(*sizes: int) -> Tensor:
            return like.new_empty(sizes)

        return cls(
            shape=shape,
            constant=constant,
            inputs=room(*lead, turns, batch, shape.inputs),
            gates=room(*lead, turns, batch, 4 * hidden),
            cells=room(*lead, turns + 1, batch, hidden),
            squashed=room(*lead, turns, batch, hidden),
            hidden=room(*lead, turns, batch, hidden),
            reads=room(*lead, turns, batch, width),
            read_raw=room(*lead, turns, batch, width + SCALARS),
            starts=room(*lead, 2, shape.slots),
        )
