"""A turn's chain of stages as one Triton kernel each way (``kernels.py``), between batched products."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from pipeline.training.fast.cell import HeadGradients, along_rows, over_rows
from pipeline.training.fast.chain import Passed, Reaching
from pipeline.training.fast.kernels import backward_turn, forward_turn
from pipeline.training.fast.parameters import SCALARS, Shape
from pipeline.training.fast.stage_by_stage import StageByStage, gather
from pipeline.training.fast.trace import Trace, Weights

TILE = 4096  # elements of a matrix that one program holds at a time: 32 registers of each of its 128 threads


class _Kept(NamedTuple):
    """What the forward kernel got and found, for the backward one; see the kernels for shapes."""

    products: Tensor
    answers: Tensor
    gram: Tensor
    gram_bias: Tensor
    scalar_weights: Tensor
    previous: Tensor
    norms: Tensor
    weights: Tensor
    cosines: Tensor
    raw: Tensor
    key_norms: Tensor


class TurnKernel(StageByStage):
    """Its chain of stages in the form without D-sized products (P_i = M_i W_r, Q_i = M_i W_k)."""

    def forward(self, trace: Trace, weights: Weights, n: int, previous: Tensor) -> None:
        shape, turn = trace.shape, trace.turns[n]
        runs, stages, _, batch, _ = trace.gates.shape
        width, slots = shape.width, shape.slots
        memory = turn.memory.reshape(runs, stages, batch * slots, width)
        key_weights, key_bias = weights.heads[:, :, :-1, :width].mT, weights.heads[:, :, -1, :width]
        scalars = slice(width, width + SCALARS)
        # r^0(n) is known; the kernel adds the other stages' r^{c-1}(n).
        trace.gates[:, 0, n].baddbmm_(trace.arriving(0, n), weights.from_previous[:, 0].mT)

        def out(*sizes: int) -> Tensor:
            return memory.new_empty(runs, stages, batch, *sizes)

        kept = _Kept(
            products=memory[:, :-1] @ weights.from_previous[:, 1:].mT,
            answers=memory @ key_weights,
            gram=key_weights.mT @ key_weights,
            gram_bias=(key_bias.unsqueeze(2) @ key_weights).squeeze(2).contiguous(),
            scalar_weights=weights.heads[:, :, :-1, scalars].mT.contiguous(),
            previous=previous.contiguous(),
            norms=turn.rows.norms.contiguous(),
            weights=out(slots),
            cosines=out(slots),
            raw=out(SCALARS),
            key_norms=out(),
        )
        gates, cells, squashed, hidden = trace.gates[:, :, n], trace.cells[:, :, n], trace.squashed[:, :, n], trace.hidden(n)
        forward_turn[(runs * batch,)](
            gates, *gates.stride()[:2], cells, *cells.stride()[:2], trace.cells[:, :, n + 1],
            squashed, *squashed.stride()[:2], hidden, *hidden.stride()[:3], kept.products, kept.answers,
            (memory @ key_bias.unsqueeze(3)).contiguous(), kept.gram, kept.gram_bias,
            key_bias.square().sum(2).contiguous(), kept.scalar_weights,
            weights.heads[:, :, -1, scalars].contiguous(), kept.previous, kept.norms, kept.weights, kept.cosines,
            kept.raw, kept.key_norms, batch, **sizes(trace.shape),
        )  # fmt: skip
        turn.read, turn.read_weights = kept, kept.weights
        trace.states[:, :, n + 1, :, :width] = over_rows(kept.weights, turn.memory)
        trace.read_raw[:, :, n, :, width:] = kept.raw
        trace.read_raw[:, :, n, :, :width] = trace.heads(weights, n, slice(width))

    def backward(
        self, weights: Weights, trace: Trace, n: int, reaching: Reaching, writing: HeadGradients | None, d_gates: Tensor,
        d_raws: Tensor,
    ) -> Passed:  # fmt: skip
        turn, width = trace.turns[n], trace.shape.width
        kept: _Kept = turn.read
        d_weights = along_rows(reaching.read, turn.memory) + reaching.read_at
        d_hidden, d_cells = reaching.hidden.contiguous(), reaching.cell.contiguous()
        d_old_cells, d_previous = torch.empty_like(d_cells), torch.empty_like(kept.weights)
        dots, pulls = torch.empty_like(kept.weights), torch.empty_like(kept.weights)
        key_pulls, d_raw = torch.empty_like(kept.key_norms), torch.empty_like(kept.raw)
        gates, cells, squashed, hidden = trace.gates[:, :, n], trace.cells[:, :, n], trace.squashed[:, :, n], trace.hidden(n)
        backward_turn[(len(d_weights) * trace.batch,)](
            d_weights, d_hidden, d_cells, gates, *gates.stride()[:2], cells, *cells.stride()[:2],
            squashed, *squashed.stride()[:2], hidden, *hidden.stride()[:3], kept.products, kept.answers, kept.gram,
            kept.gram_bias, kept.scalar_weights, kept.previous, kept.norms, kept.weights, kept.cosines, kept.raw,
            kept.key_norms, d_gates, *d_gates.stride()[:2], d_old_cells, d_previous, dots, pulls, key_pulls, d_raw,
            trace.batch, **sizes(trace.shape),
        )  # fmt: skip
        key_pull, keys = key_pulls.unsqueeze(-1), trace.read_raw[:, :, n, :, :width]
        torch.addcmul(over_rows(dots, turn.memory), key_pull, keys, out=d_raws[:, :, n, :, :width])
        d_raws[:, :, n, :, width:] = d_raw
        passed = d_gates @ weights.from_previous
        reaching.read[:, :-1] += passed[:, 1:]
        gather(trace, n, reaching.read, HeadGradients(d_previous, dots, pulls, key_pull), writing)
        return Passed(d_previous, d_old_cells, passed[:, 0])


def sizes(shape: Shape) -> dict[str, int]:
    """What the kernels are compiled for."""
    units = max(16, triton.next_power_of_2(shape.hidden))
    return {
        "C": shape.stages, "H": shape.hidden, "N": shape.slots,
        "UNITS": units, "SLOTS": triton.next_power_of_2(shape.slots), "ROWS": min(units, max(1, TILE // units)),
    }  # fmt: skip
