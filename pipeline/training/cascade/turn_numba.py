"""A turn of all stages with compiled loops (``numba_loops.py``) between its matrix products, for the CPU."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from pipeline.training.cascade import numba_loops
from pipeline.training.cascade.cell import HeadGradients
from pipeline.training.cascade.parameters import SCALARS
from pipeline.training.cascade.saved_activations import SavedActivations, Weights
from pipeline.training.cascade.turn_ops import CompiledHeadWeights, GradIn, GradOut, begin_write, own_memory
from pipeline.training.cascade.turn_torch import ControlBackward, control


class NumbaTurn:
    """Turn operations as matrix products and one compiled loop over each session's memory."""

    def forward(self, saved: SavedActivations, weights: Weights, n: int, previous: Tensor) -> None:
        turn, head = saved.turns[n], CompiledHeadWeights.empty(previous)
        arrays = _arrays(*own_memory(turn), saved.states, saved.read_raw, *head)
        for c in range(saved.shape.stages):
            control(saved, weights, n, c)
            numba_loops.read(*arrays, c, n)
        turn.read, turn.read_weights = head, head.weights

    def write(self, saved: SavedActivations, n: int, raw: Tensor, previous: Tensor) -> None:
        turn, new = saved.turns[n], begin_write(saved, n, raw, previous)
        turn.write_raw[..., SCALARS : SCALARS + saved.shape.width].sigmoid_()
        numba_loops.write(*_arrays(*turn.rows, turn.write_raw, *turn.write, *new), turn.side_by_side)

    def write_backward(self, saved: SavedActivations, n: int, at: Tensor, d_raws: Tensor) -> HeadGradients:
        turn, head = saved.turns[n], saved.turns[n].write
        found = head.gradients()
        given = (*turn.rows, turn.write_raw, head.previous, head.cosines, saved.d_memory, at, d_raws, *found[:3])
        numba_loops.write_backward(*_arrays(*given), n, turn.side_by_side)
        return found

    def backward(self, saved: SavedActivations, weights: Weights, n: int, grad_in: GradIn) -> GradOut:
        turn, controllers, d_raws = saved.turns[n], ControlBackward(saved, weights, n, grad_in), grad_in.d_raws
        head, writing, rows = turn.read, grad_in.writing, turn.rows
        reading = head.gradients()
        given = (head.previous, head.cosines, grad_in.state, grad_in.read_at, d_raws, *reading[:3])
        arrays = _arrays(*rows, saved.read_raw, *given)
        for c in reversed(range(saved.shape.stages)):
            numba_loops.read_backward(*arrays, c, n)
            controllers.stage(c, d_raws[:, c, n])
        wrote = (saved.read_raw[0], *head)  # placeholders, not read
        if writing is not None:
            wrote = (turn.write_raw, turn.write.weights, writing.dots, writing.pull)
        given = (head.weights, reading.dots, reading.pull, grad_in.state, saved.d_memory, *wrote)
        numba_loops.gather(*_arrays(*rows, saved.read_raw, *given), n, writing is not None)
        return GradOut(reading.previous, controllers.cell, controllers.first)


def _arrays(*tensors: Tensor) -> list[np.ndarray]:
    """Return each tensor as a contiguous array; rows padded by ``aligned`` include their padding."""
    whole = [t if t.is_contiguous() else t.as_strided((*t.shape[:-1], t.stride(-2)), t.stride()) for t in tensors]
    return [tensor.detach().numpy() for tensor in whole]
