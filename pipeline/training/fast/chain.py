"""The one part of a turn that goes stage by stage: r^{c-1}(n) -> gates -> read head -> r^c(n), and its backward."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from pipeline.training.fast.cell import (
    HeadGradients,
    Stand,
    address,
    address_backward,
    along_rows,
    lstm,
    lstm_backward,
    lstm_slopes,
    over_rows,
)
from pipeline.training.fast.parameters import SCALARS
from pipeline.training.fast.trace import Trace, Weights


class Reaching(NamedTuple):
    """Gradients that reach a turn from all but its own chain: of r^c(n) [K, C, B, M] and hidden [K, C, B, H], which the
    chain may add its own to (of r^c(n) it must), of the cells [K, C, B, H], and of where the read heads stand [K, C, B, N].
    """

    read: Tensor
    hidden: Tensor
    cell: Tensor
    read_at: Tensor


class Passed(NamedTuple):
    """What a chain's backward hands on: the read heads' gradients [K, C, B, ..], those of the cells before the turn
    [K, C, B, H], and of r^0(n), [K, B, M]."""

    head: HeadGradients
    cell: Tensor
    first: Tensor


class Chain(Protocol):
    """One turn through all stages. In a trace, ``forward`` finds the turn's memory and the gates' parts that do not
    depend on the chain, and completes gates, squashed, read_raw, and at place n + 1 cells and states."""

    def forward(self, trace: Trace, weights: Weights, n: int, previous: Tensor) -> None:
        """``previous`` [K, C, B, N]: where the read heads stood after turn n - 1."""

    def backward(
        self, weights: Weights, trace: Trace, n: int, reaching: Reaching, d_gates: Tensor, d_reading: Tensor
    ) -> Passed:
        """Completes ``d_gates`` [K, C, B, 4 H] and ``d_reading`` [K, C, B, M + 6], of the read heads' raw outputs."""


class StageByStage:
    """Each stage's operations in turn: the plain form, and on a CPU the fast one."""

    def forward(self, trace: Trace, weights: Weights, n: int, previous: Tensor) -> None:
        turn, width, hidden = trace.turns[n], trace.shape.width, trace.hidden(n)
        given, heads = trace.states[:, :, n + 1, :, width:], weights.heads[..., : width + SCALARS]  # [h; 1]
        stands: list[Stand] = []
        for c in range(trace.shape.stages):
            gates = trace.gates[:, c, n]
            gates.baddbmm_(trace.arriving(c, n), weights.from_previous[:, c].mT)
            lstm(gates, trace.cells[:, c, n], trace.cells[:, c, n + 1], trace.squashed[:, c, n], hidden[:, c])
            raw = torch.bmm(given[:, c], heads[:, c], out=trace.read_raw[:, c, n])
            stands.append(address(turn.rows.stage(c), raw[..., :width], raw[..., width:], previous[:, c]))
            trace.states[:, c, n + 1, :, :width] = over_rows(stands[-1].weights, turn.memory[:, c])
        turn.read, turn.read_weights = stands, torch.stack([stand.weights for stand in stands], 1)

    def backward(
        self, weights: Weights, trace: Trace, n: int, reaching: Reaching, d_gates: Tensor, d_reading: Tensor
    ) -> Passed:
        turn, width, hidden = trace.turns[n], trace.shape.width, trace.shape.hidden
        gates, heads, cells = trace.gates[:, :, n], [], []
        reading = weights.heads[:, :, :-1, : width + SCALARS].mT
        to_cell = lstm_slopes(gates, trace.cells[:, :, n], trace.squashed[:, :, n], d_gates)
        forget = gates[..., hidden : 2 * hidden]
        for c in reversed(range(trace.shape.stages)):
            memory, raw = turn.memory[:, c], d_reading[:, c]
            d_weights = along_rows(reaching.read[:, c], memory).add_(reaching.read_at[:, c])
            head = address_backward(d_weights, turn.read[c], raw[..., width:])
            key = trace.read_raw[:, c, n, :, :width]
            torch.addcmul(over_rows(head.dots, memory), head.key_pull, key, out=raw[..., :width])
            d_hidden = reaching.hidden[:, c].baddbmm_(raw, reading[:, c])
            cells.append(lstm_backward(d_hidden, reaching.cell[:, c], forget[:, c], to_cell[:, c], d_gates[:, c]))
            heads.append(head)
            if c:
                reaching.read[:, c - 1].baddbmm_(d_gates[:, c], weights.from_previous[:, c])
        first = d_gates[:, 0] @ weights.from_previous[:, 0]
        stacked = HeadGradients(*(torch.stack(parts[::-1], 1) for parts in zip(*heads, strict=True)))
        return Passed(stacked, torch.stack(cells[::-1], 1), first)
