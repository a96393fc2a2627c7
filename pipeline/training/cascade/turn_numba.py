"""A turn of all stages with compiled loops (``numba_loops.py``) between its matrix products, for the CPU."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from pipeline.training.cascade import numba_loops
from pipeline.training.cascade.cell import HeadGradients
from pipeline.training.cascade.head_weights import CompiledHeadWeights, CompiledWrites, own_memory, rows_of
from pipeline.training.cascade.parameters import SCALARS
from pipeline.training.cascade.saved_activations import SavedActivations, Turn, Weights
from pipeline.training.cascade.turn_ops import GradIn, GradOut
from pipeline.training.cascade.turn_torch import ControlBackward, control


class NumbaTurn(CompiledWrites):
    """Turn operations as matrix products and one compiled loop over each session's memory."""

    def forward(self, saved: SavedActivations, weights: Weights, n: int, previous: Tensor) -> None:
        turn = saved.turns[n]
        own_memory(turn)
        head = CompiledHeadWeights.empty(previous)
        arrays = _arrays(turn.memory, turn.rows.norms, saved.states, saved.read_raw, *head[:3])
        for c in range(saved.shape.stages):
            control(saved, weights, n, c)
            numba_loops.read(*arrays, c, n)
        turn.read, turn.read_weights = head, head.weights

    def _write(
        self, saved: SavedActivations, turn: Turn, head: CompiledHeadWeights, new: Tensor, norms: Tensor
    ) -> None:
        width = saved.shape.width
        head.raw[..., SCALARS : SCALARS + width].sigmoid_()
        numba_loops.write(*_arrays(*rows_of(turn, head), head.raw, *head[:3], new, norms), turn.side_by_side)

    def _write_backward(
        self,
        saved: SavedActivations,
        n: int,
        head: CompiledHeadWeights,
        at: Tensor,
        d_raws: Tensor,
        found: HeadGradients,
    ) -> None:
        turn = saved.turns[n]
        given = (*rows_of(turn, head), head.raw, head.previous, head.cosines, saved.d_memory, at, d_raws, *found[:3])
        numba_loops.write_backward(*_arrays(*given), n, turn.side_by_side)

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
        turn, controllers = saved.turns[n], ControlBackward(weights, saved, n, grad_in, d_gates)
        head: CompiledHeadWeights = turn.read
        reading = head.gradients()
        arrays = _arrays(
            turn.memory,
            turn.rows.norms,
            saved.read_raw,
            head.previous,
            head.cosines,
            grad_in.state,
            grad_in.read_at,
            d_raws,
            *reading[:3],
        )
        for c in reversed(range(saved.shape.stages)):
            numba_loops.read_backward(*arrays, c, n)
            controllers.stage(c, d_raws[:, c, n])
        wrote = (
            (turn.write.raw, turn.write.weights, writing.dots, writing.pull)
            if writing
            else (saved.read_raw[0], *head[:3])
        )
        numba_loops.gather(
            *_arrays(turn.memory, turn.rows.norms, saved.read_raw, head.weights, reading.dots, reading.pull),
            *_arrays(grad_in.state, saved.d_memory, *wrote),
            n,
            writing is not None,
        )
        return GradOut(reading.previous, controllers.cell, controllers.first)


def _arrays(*tensors: Tensor) -> list[np.ndarray]:
    """Return each tensor as a contiguous array; rows padded by ``aligned`` include their padding."""
    whole = [t if t.is_contiguous() else t.as_strided((*t.shape[:-1], t.stride(-2)), t.stride()) for t in tensors]
    return [tensor.detach().numpy() for tensor in whole]
