"""A turn of all stages with compiled loops (``numba_loops.py``) between its matrix products, for the CPU."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from pipeline.training.cascade import numba_loops
from pipeline.training.cascade.cell import HeadGradients, MemoryRows
from pipeline.training.cascade.head_weights import CompiledHeadWeights, rows_of
from pipeline.training.cascade.parameters import SCALARS
from pipeline.training.cascade.saved_activations import SavedActivations, Turn, Weights
from pipeline.training.cascade.turn_ops import GradIn, GradOut
from pipeline.training.cascade.turn_torch import ControlBackward, TorchTurn, control


class NumbaTurn(TorchTurn):
    """Turn operations as matrix products and one compiled loop over each session's memory."""

    def forward(self, trace: SavedActivations, weights: Weights, n: int, previous: Tensor) -> None:
        turn = trace.turns[n]
        turn.memory = turn.memory.contiguous()  # in turn 1, sessions may share one memory
        turn.rows = MemoryRows(turn.memory, turn.rows.norms.contiguous())
        stood = CompiledHeadWeights.room(previous)
        arrays = _arrays(turn.memory, turn.rows.norms, trace.states, trace.read_raw, *stood[:3])
        for c in range(trace.shape.stages):
            control(trace, weights, n, c)
            numba_loops.read(*arrays, c, n)
        turn.read, turn.read_weights = stood, stood.weights

    def write(self, trace: SavedActivations, n: int, raw: Tensor, previous: Tensor) -> None:
        turn, width, new = trace.turns[n], trace.shape.width, trace.memories[n]
        raw[..., SCALARS : SCALARS + width].sigmoid_()
        stood, norms = CompiledHeadWeights.room(previous, raw.contiguous()), new.new_empty(new.shape[:-1])
        numba_loops.write(*_arrays(*rows_of(turn, stood), stood.raw, *stood[:3], new, norms), turn.side_by_side)
        turn.write = stood
        trace.turns.append(Turn(new, MemoryRows(new, norms)))

    def write_backward(self, trace: SavedActivations, n: int, at: Tensor, d_raws: Tensor) -> HeadGradients:
        turn = trace.turns[n]
        stood: CompiledHeadWeights = turn.write
        found = stood.gradients()
        numba_loops.write_backward(
            *_arrays(
                *rows_of(turn, stood), stood.raw, stood.previous, stood.cosines, trace.d_memory, at, d_raws, *found[:3]
            ),
            n,
            turn.side_by_side,
        )
        return found

    def backward(
        self,
        weights: Weights,
        trace: SavedActivations,
        n: int,
        reaching: GradIn,
        writing: HeadGradients | None,
        d_gates: Tensor,
        d_raws: Tensor,
    ) -> GradOut:
        turn, controllers = trace.turns[n], ControlBackward(weights, trace, n, reaching, d_gates)
        stood: CompiledHeadWeights = turn.read
        reading = stood.gradients()
        arrays = _arrays(
            turn.memory,
            turn.rows.norms,
            trace.read_raw,
            stood.previous,
            stood.cosines,
            reaching.state,
            reaching.read_at,
            d_raws,
            *reading[:3],
        )
        for c in reversed(range(trace.shape.stages)):
            numba_loops.read_backward(*arrays, c, n)
            controllers.stage(c, d_raws[:, c, n])
        wrote = (
            (turn.write.raw, turn.write.weights, writing.dots, writing.pull)
            if writing
            else (trace.read_raw[0], *stood[:3])
        )
        numba_loops.gather(
            *_arrays(turn.memory, turn.rows.norms, trace.read_raw, stood.weights, reading.dots, reading.pull),
            *_arrays(reaching.state, trace.d_memory, *wrote),
            n,
            writing is not None,
        )
        return GradOut(reading.previous, controllers.cell, controllers.first)


def _arrays(*tensors: Tensor) -> list[np.ndarray]:
    """Return each tensor as a contiguous array; rows padded by ``aligned`` include their padding."""
    whole = [t if t.is_contiguous() else t.as_strided((*t.shape[:-1], t.stride(-2)), t.stride()) for t in tensors]
    return [tensor.detach().numpy() for tensor in whole]
