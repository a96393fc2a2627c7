"""A turn as Triton kernels between batched products (``kernels/``).

One kernel each for the forward and backward of the chain of stages and of the write, and one for the gradient of the
memories.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from pipeline.training.cascade.cell import HeadGradients, along_rows, over_rows
from pipeline.training.cascade.head_weights import CompiledHeadWeights, CompiledWrites, own_memory, rows_of
from pipeline.training.cascade.kernels.memory import gather_memory, write_memory, write_memory_backward
from pipeline.training.cascade.kernels.stages import backward_turn, forward_turn
from pipeline.training.cascade.parameters import SCALARS, Shape
from pipeline.training.cascade.products import product
from pipeline.training.cascade.saved_activations import SavedActivations, Turn, Weights
from pipeline.training.cascade.turn_ops import GradIn, GradOut

TILE = 4096  # maximum elements of a tile whose size is chosen here: 32 registers in each of 128 threads


class _OfWeights(NamedTuple):
    """Values that depend on weights only.

    gram: [K, C, H + 1, H + 1], the Gram matrix of the read key's weights and bias; scalars: [K, C, 6, H + 1], weights
    and bias of the read head's scalars.
    """

    gram: Tensor
    scalars: Tensor


class _Kept(NamedTuple):
    """Inputs and results of the forward kernel saved for the backward kernel; see the kernels for shapes."""

    products: Tensor
    answers: Tensor
    of_weights: _OfWeights
    previous: Tensor
    weights: Tensor
    cosines: Tensor
    key_norms: Tensor


class TritonTurn(CompiledWrites):
    """Turn operations with a chain of stages without products of size D (P_i = M_i W_r, Q_i = M_i W_k)."""

    def forward(self, saved: SavedActivations, weights: Weights, n: int, previous: Tensor) -> None:
        shape, turn = saved.shape, saved.turns[n]
        own_memory(turn)
        runs, stages, _, batch, _ = saved.gates.shape
        width, slots = shape.width, shape.slots
        memory = turn.memory.view(runs, stages, batch * slots, width)
        # r^0(n) is known; the kernel adds the other stages' r^{c-1}(n).
        saved.gates[:, 0, n].baddbmm_(saved.arriving(0, n), weights.from_previous[:, 0].mT)

        def out(*sizes: int) -> Tensor:
            return memory.new_empty(runs, stages, batch, *sizes)

        kept = _Kept(
            products=product(memory[:, :-1], weights.from_previous[:, 1:].mT),
            answers=memory @ weights.heads[..., :width].mT,
            of_weights=_of_weights(saved, weights, n),
            previous=previous.contiguous(),
            weights=out(slots),
            cosines=out(slots),
            key_norms=out(),
        )
        raw = saved.read_raw[:, :, n, :, width:]
        forward_turn[(runs * batch,)](
            *_controller(saved, n),
            saved.cells[:, :, n + 1],
            kept.products,
            kept.answers,
            *kept.of_weights,
            kept.previous,
            turn.rows.norms,
            raw,
            *raw.stride()[1:3],
            kept.weights,
            kept.cosines,
            kept.key_norms,
            batch,
            **sizes(shape),
        )
        turn.read, turn.read_weights = kept, kept.weights
        saved.states[:, :, n + 1, :, :width] = over_rows(kept.weights, turn.memory)
        saved.read_raw[:, :, n, :, :width] = saved.heads(weights, n, slice(width))

    def backward(
        self,
        weights: Weights,
        saved: SavedActivations,
        n: int,
        grad_in: GradIn,
        writing: HeadGradients | None,
        d_gates: Tensor,
        d_raws: Tensor,
    ) -> GradOut:
        turn, width = saved.turns[n], saved.shape.width
        kept: _Kept = turn.read
        d_weights, d_hidden, d_cells = (
            along_rows(grad_in.read, turn.memory),
            grad_in.hidden,
            grad_in.cell.contiguous(),
        )
        d_weights += grad_in.read_at
        d_old_cells, d_previous = torch.empty_like(d_cells), torch.empty_like(kept.weights)
        (dots, pulls), key_pulls = (torch.empty_like(kept.weights) for _ in range(2)), torch.empty_like(kept.key_norms)
        raw, d_raw = saved.read_raw[:, :, n, :, width:], d_raws[:, :, n, :, width:]
        backward_turn[(len(d_weights) * saved.batch,)](
            d_weights,
            d_hidden,
            d_hidden.stride(2),
            d_cells,
            *_controller(saved, n),
            kept.products,
            kept.answers,
            *kept.of_weights,
            kept.previous,
            turn.rows.norms,
            raw,
            *raw.stride()[1:3],
            kept.cosines,
            kept.key_norms,
            d_gates,
            *d_gates.stride()[:2],
            d_old_cells,
            d_previous,
            dots,
            pulls,
            key_pulls,
            d_raw,
            *d_raw.stride()[1:3],
            saved.batch,
            **sizes(saved.shape),
        )
        key_pull, keys = key_pulls.unsqueeze(-1), saved.read_raw[:, :, n, :, :width]
        torch.addcmul(over_rows(dots, turn.memory), key_pull, keys, out=d_raws[:, :, n, :, :width])
        d_inputs = d_gates @ weights.from_previous
        grad_in.read[:, :-1] += d_inputs[:, 1:]
        self._gather(saved, n, grad_in.read, HeadGradients(d_previous, dots, pulls), writing)
        return GradOut(d_previous, d_old_cells, d_inputs[:, 0])

    def _write(
        self, saved: SavedActivations, turn: Turn, head: CompiledHeadWeights, new: Tensor, norms: Tensor
    ) -> None:
        write_memory[_programs(norms)](
            *rows_of(turn, head),
            head.raw,
            head.raw.shape[-1],
            head.previous,
            new,
            norms,
            head.weights,
            head.cosines,
            saved.batch,
            ALIKE=turn.side_by_side,
            **memory_sizes(saved.shape),
        )

    def _write_backward(
        self,
        saved: SavedActivations,
        n: int,
        head: CompiledHeadWeights,
        at: Tensor,
        d_raws: Tensor,
        found: HeadGradients,
    ) -> None:
        turn, d_raw = saved.turns[n], d_raws[:, :, n]
        write_memory_backward[_programs(head.weights)](
            *rows_of(turn, head),
            head.raw,
            head.raw.shape[-1],
            head.previous,
            head.cosines,
            saved.d_memory,
            at.contiguous(),
            d_raw,
            *d_raw.stride()[1:3],
            found.previous,
            found.dots,
            found.pull,
            saved.batch,
            ALIKE=turn.side_by_side,
            **memory_sizes(saved.shape),
        )

    @staticmethod
    def _gather(
        saved: SavedActivations, n: int, d_read: Tensor, reading: HeadGradients, writing: HeadGradients | None
    ) -> None:
        """Replace ``saved.d_memory``, the gradient of the memories after turn n, by that of the memories before it."""
        turn, keys = saved.turns[n], saved.read_raw[:, :, n]
        wrote = (keys, 0, *[turn.read_weights] * 3)  # placeholders, not read
        if writing is not None:
            wrote = (turn.write.raw, turn.write.raw.shape[-1], turn.write.weights, writing.dots, writing.pull)
        gather_memory[_programs(turn.read_weights)](
            turn.memory,
            turn.rows.norms,
            saved.d_memory,
            turn.read_weights,
            reading.dots,
            reading.pull,
            d_read,
            d_read.stride(2),
            keys,
            *keys.stride()[1:3],
            *wrote,
            saved.batch,
            WROTE=writing is not None,
            **memory_sizes(saved.shape),
        )


def _controller(saved: SavedActivations, n: int) -> tuple[Tensor | int, ...]:
    """Return gates, cells, squashed and hidden of turn n, [K, C, B, ..] each, with the strides that the kernels need."""
    gates, cells, squashed, hidden = (
        saved.gates[:, :, n],
        saved.cells[:, :, n],
        saved.squashed[:, :, n],
        saved.hidden(n),
    )
    given = ((gates, 2), (cells, 2), (squashed, 2), (hidden, 3))
    values: list[Tensor | int] = []
    for tensor, strides in given:
        values += [tensor, *tensor.stride()[:strides]]
    return tuple(values)


def _of_weights(saved: SavedActivations, weights: Weights, n: int) -> _OfWeights:
    """Return the values that depend on weights only, computed once per forward pass."""
    before = saved.turns[n - 1].read if n else None
    if isinstance(before, _Kept):
        return before.of_weights
    width = saved.shape.width
    keys, scalars = weights.heads[..., :width], weights.heads[..., width : width + SCALARS]
    return _OfWeights(keys @ keys.mT, scalars.mT.contiguous())


def _programs(slots: Tensor) -> tuple[int]:
    """Return the grid of one program per run, stage and session of [K, C, B, N]."""
    return (slots.shape[:-1].numel(),)


def memory_sizes(shape: Shape) -> dict[str, int]:
    """Return the compile-time constants of the memory kernels."""
    slots = triton.next_power_of_2(shape.slots)
    columns = min(triton.next_power_of_2(shape.width), max(1, TILE // 2 // slots))
    return {"M": shape.width, "N": shape.slots, "SLOTS": slots, "COLS": columns, "num_warps": _warps(slots * slots)}


def sizes(shape: Shape) -> dict[str, int]:
    """Return the compile-time constants of the stage kernels."""
    units, slots = max(16, triton.next_power_of_2(shape.hidden)), triton.next_power_of_2(shape.slots)
    return {
        "C": shape.stages,
        "H": shape.hidden,
        "N": shape.slots,
        "UNITS": units,
        "SLOTS": slots,
        "ROWS": min(units, max(1, TILE // units)),
        "num_warps": _warps(slots * max(units, slots)),
    }


def _warps(elements: int) -> int:
    """Return the number of warps (32 threads each) for a program whose largest matrix in registers has ``elements``."""
    return 4 if elements <= 2 * TILE else 8
