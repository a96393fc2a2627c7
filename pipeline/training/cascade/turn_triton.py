"""A turn as Triton kernels between batched products: chain and write with their backward, the memories' gradient."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from pipeline.training.cascade.cell import HeadGradients, along_rows, over_rows
from pipeline.training.cascade.kernels.memory import gather_memory, write_memory, write_memory_backward
from pipeline.training.cascade.kernels.stages import backward_turn, forward_turn
from pipeline.training.cascade.parameters import SCALARS, Shape
from pipeline.training.cascade.products import product
from pipeline.training.cascade.saved_activations import SavedActivations, Weights
from pipeline.training.cascade.turn_ops import GradIn, GradOut, begin_write, own_memory

FUSED = {"enable_fp_fusion": True}  # Triton 3.10 changes its default, which speed and the last digits depend on
TILE = 4096  # maximum elements of a tile whose size is chosen here: 32 registers in each of 128 threads


class _Kept(NamedTuple):
    """Inputs and results of the forward kernel saved for the backward kernel; see the kernels for shapes."""

    products: Tensor
    answers: Tensor
    of_weights: tuple[Tensor, Tensor]  # see ``_of_weights``
    previous: Tensor
    weights: Tensor
    cosines: Tensor
    key_norms: Tensor


class TritonTurn:
    """Turn operations with a chain of stages without products of size D (P_i = M_i W_r, Q_i = M_i W_k)."""

    def forward(self, saved: SavedActivations, weights: Weights, n: int, previous: Tensor) -> None:
        shape, turn = saved.shape, saved.turns[n]
        rows = own_memory(turn)
        runs, stages, _, batch, _ = saved.gates.shape
        width, slots = shape.width, shape.slots
        memory = rows.memory.view(runs, stages, batch * slots, width)
        # r^0(n) is known; the kernel adds the other stages' r^{c-1}(n).
        saved.gates[:, 0, n].baddbmm_(saved.stage_input(0, n), weights.from_previous[:, 0].mT)

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
        given = (kept.products, kept.answers, *kept.of_weights, kept.previous, rows.norms)
        found = (kept.weights, kept.cosines, kept.key_norms)
        given = (*_controller(saved, n), *given, *_strided(saved.read_raw[:, :, n, :, width:], 2, 3), *found)
        forward_turn[(runs * batch,)](*given, batch, saved.length, **sizes(shape))
        turn.read, turn.read_weights = kept, kept.weights
        saved.states[:, :, n + 1, :, :width] = over_rows(kept.weights, rows.memory)
        saved.read_raw[:, :, n, :, :width] = saved.heads(weights, n, slice(width))

    def backward(self, saved: SavedActivations, weights: Weights, n: int, grad_in: GradIn) -> GradOut:
        turn, width, d_gates, d_raws = saved.turns[n], saved.shape.width, grad_in.d_gates, grad_in.d_raws[:, :, n]
        kept: _Kept = turn.read
        d_weights, d_cells = along_rows(grad_in.read, turn.rows.memory), grad_in.cell.contiguous()
        d_weights += grad_in.read_at
        d_old_cells, d_previous = torch.empty_like(d_cells), torch.empty_like(kept.weights)
        (dots, pulls), key_pulls = (torch.empty_like(kept.weights) for _ in range(2)), torch.empty_like(kept.key_norms)
        upstream = (d_weights, *_strided(grad_in.hidden, 2, 3), d_cells)
        given = (kept.products, kept.answers, *kept.of_weights, kept.previous, turn.rows.norms)
        addressed = (*_strided(saved.read_raw[:, :, n, :, width:], 2, 3), kept.cosines, kept.key_norms)
        found = (d_gates, d_old_cells, d_previous, dots, pulls, key_pulls, d_raws[..., width:])
        given = (*upstream, *_controller(saved, n), *given, *addressed, *found, saved.batch, saved.length)
        backward_turn[(len(d_weights) * saved.batch,)](*given, **sizes(saved.shape))
        key_pull, keys = key_pulls.unsqueeze(-1), saved.read_raw[:, :, n, :, :width]
        torch.addcmul(over_rows(dots, turn.rows.memory), key_pull, keys, out=d_raws[..., :width])
        d_inputs = d_gates @ weights.from_previous
        grad_in.read[:, :-1] += d_inputs[:, 1:]
        _gather(saved, n, grad_in.read, HeadGradients(d_previous, dots, pulls), grad_in.writing)
        return GradOut(d_previous, d_old_cells, d_inputs[:, 0])

    def write(self, saved: SavedActivations, n: int, raw: Tensor, previous: Tensor) -> None:
        turn, new = saved.turns[n], begin_write(saved, n, raw, previous)
        raws, head = turn.write_raw, turn.write
        given = (*turn.rows, raws, raws.shape[-1], head.previous, *new, head.weights, head.cosines, saved.batch)
        write_memory[_programs(new.norms)](*given, ALIKE=turn.side_by_side, **memory_sizes(saved.shape))

    def write_backward(self, saved: SavedActivations, n: int, at: Tensor, d_raws: Tensor) -> HeadGradients:
        turn, head = saved.turns[n], saved.turns[n].write
        raws, found = turn.write_raw, head.gradients()
        given = (*turn.rows, raws, raws.shape[-1], head.previous, head.cosines, saved.d_memory, at.contiguous())
        gradients = (*_strided(d_raws[:, :, n], 1, 3), *found[:3])
        write_memory_backward[_programs(head.weights)](
            *given, *gradients, saved.batch, ALIKE=turn.side_by_side, **memory_sizes(saved.shape)
        )
        return found


def _gather(
    saved: SavedActivations, n: int, d_read: Tensor, reading: HeadGradients, writing: HeadGradients | None
) -> None:
    """Replace ``saved.d_memory``, the gradient of the memories after turn n, by that of the memories before it."""
    turn, keys, weights = saved.turns[n], saved.read_raw[:, :, n], saved.turns[n].read_weights
    wrote: tuple[Any, ...] = (keys, 0, weights, weights, weights)  # placeholders, not read
    if writing is not None:
        wrote = (turn.write_raw, turn.write_raw.shape[-1], turn.write.weights, writing.dots, writing.pull)
    given = (*turn.rows, saved.d_memory, weights, reading.dots, reading.pull)
    read = (*_strided(d_read, 2, 3), *_strided(keys, 1, 3))
    gather_memory[_programs(weights)](
        *given, *read, *wrote, saved.batch, WROTE=writing is not None, **memory_sizes(saved.shape)
    )


def _strided(tensor: Tensor, first: int, last: int) -> tuple[Any, ...]:
    """Return the tensor with its strides of the dimensions ``first`` to ``last`` - 1, for a kernel."""
    return tensor, *tensor.stride()[first:last]


def _controller(saved: SavedActivations, n: int) -> tuple[Any, ...]:
    """Return gates, cells, squashed and hidden of turn n, [K, C, B, ..] each, and the stride of B of the last."""
    gates, cells, squashed = (part[:, :, n] for part in (saved.gates, saved.cells, saved.squashed))
    return gates, cells, squashed, *_strided(saved.hidden(n), 2, 3)


def _of_weights(saved: SavedActivations, weights: Weights, n: int) -> tuple[Tensor, Tensor]:
    """Return the values of the read head that depend on weights only, computed once per forward pass.

    The Gram matrix of the key's weights and bias, [K, C, H + 1, H + 1]; those of the scalars, [K, C, 6, H + 1].
    """
    before = saved.turns[n - 1].read if n else None
    if isinstance(before, _Kept):
        return before.of_weights
    width = saved.shape.width
    keys, scalars = weights.heads[..., :width], weights.heads[..., width : width + SCALARS]
    return keys @ keys.mT, scalars.mT.contiguous()


def _programs(slots: Tensor) -> tuple[int]:
    """Return the grid of one program per run, stage and session of [K, C, B, N]."""
    return (slots.shape[:-1].numel(),)


def memory_sizes(shape: Shape) -> dict[str, int]:
    """Return the compile-time constants and options of the memory kernels."""
    slots = triton.next_power_of_2(shape.slots)
    columns = min(triton.next_power_of_2(shape.width), max(1, TILE // 2 // slots))
    constants = {"M": shape.width, "N": shape.slots, "SLOTS": slots, "COLS": columns}
    return {**constants, "num_warps": _warps(slots * slots), **FUSED}


def sizes(shape: Shape) -> dict[str, int]:
    """Return the compile-time constants and options of the stage kernels."""
    units, slots = max(16, triton.next_power_of_2(shape.hidden)), triton.next_power_of_2(shape.slots)
    constants = {"C": shape.stages, "H": shape.hidden, "N": shape.slots, "UNITS": units, "SLOTS": slots}
    rows = min(units, max(1, TILE // units))
    return {**constants, "ROWS": rows, "num_warps": _warps(slots * max(units, slots)), **FUSED}


def _warps(elements: int) -> int:
    """Return the number of warps (32 threads each) for a program whose largest matrix in registers has ``elements``."""
    return 4 if elements <= 2 * TILE else 8
