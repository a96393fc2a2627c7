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
    over_rows,
)
from pipeline.training.fast.parameters import SCALARS
from pipeline.training.fast.trace import Trace, Weights


class Reaching(NamedTuple):
    """Gradients that reach a turn from all but its own chain: of r^c(n) [K, C, B, M], which the chain adds its own to,
    of hidden and cell [K, C, B, H], and of where the read heads stand [K, C, B, N]."""

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
    depend on the chain, and completes gates, cells, squashed, hidden, reads, read_raw and the inputs' r^{c-1}(n)."""

    def forward(self, trace: Trace, weights: Weights, n: int, previous: Tensor) -> None:
        """``previous`` [K, C, B, N]: where the read heads stood after turn n - 1."""

    def backward(
        self, weights: Weights, trace: Trace, n: int, reaching: Reaching, d_gates: Tensor, d_reading: Tensor
    ) -> Passed:
        """Completes ``d_gates`` [K, C, B, 4 H] and ``d_reading`` [K, C, B, M + 6], of the read heads' raw outputs."""


class StageByStage:
    """Each stage's operations in turn: the plain form, and on a CPU the fast one."""

    def forward(self, trace: Trace, weights: Weights, n: int, previous: Tensor) -> None:
        shape, turn = trace.shape, trace.turns[n]
        width, reading = shape.width, shape.width + SCALARS
        stands: list[Stand] = []
        for c in range(shape.stages):
            gates = trace.gates[:, c, n]
            gates.baddbmm_(trace.inputs[:, c, n, :, :width], weights.controller[:, c, :, :width].mT)
            hidden, trace.cells[:, c, n + 1], trace.squashed[:, c, n] = lstm(gates, trace.cells[:, c, n])
            trace.hidden[:, c, n] = hidden
            raw = torch.baddbmm(weights.head_bias[:, c, None, :reading], hidden, weights.heads[:, c, :reading].mT)
            trace.read_raw[:, c, n] = raw
            stand = address(turn.memory[:, c], turn.norms[:, c], raw[..., :width], raw[..., width:], previous[:, c])
            stands.append(stand)
            trace.reads[:, c, n] = read = over_rows(stand.weights, turn.memory[:, c])
            if c + 1 < shape.stages:
                trace.inputs[:, c + 1, n, :, :width] = read
        turn.read, turn.read_weights = stands, torch.stack([stand.weights for stand in stands], 1)

    def backward(
        self, weights: Weights, trace: Trace, n: int, reaching: Reaching, d_gates: Tensor, d_reading: Tensor
    ) -> Passed:
        shape, turn = trace.shape, trace.turns[n]
        width, reading = shape.width, shape.width + SCALARS
        heads, cells, passed = [], [], None
        for c in reversed(range(shape.stages)):
            memory = turn.memory[:, c]
            d_weights = along_rows(reaching.read[:, c], memory) + reaching.read_at[:, c]
            head = address_backward(d_weights, turn.read[c])
            raw, key = d_reading[:, c], trace.read_raw[:, c, n, :, :width]
            torch.addcmul(over_rows(head.dots, memory), head.key_scale, key, out=raw[..., :width])
            raw[..., width:] = head.raw
            d_hidden = torch.baddbmm(reaching.hidden[:, c], raw, weights.heads[:, c, :reading])
            cells.append(
                lstm_backward(
                    d_hidden, reaching.cell[:, c], trace.gates[:, c, n], trace.cells[:, c, n],
                    trace.squashed[:, c, n], d_gates[:, c],
                )
            )  # fmt: skip
            passed = d_gates[:, c] @ weights.controller[:, c, :, :width]
            if c:
                reaching.read[:, c - 1] += passed
            heads.append(head)
        stacked = HeadGradients(*(torch.stack(parts[::-1], 1) for parts in zip(*heads, strict=True)))
        return Passed(stacked, torch.stack(cells[::-1], 1), passed)
