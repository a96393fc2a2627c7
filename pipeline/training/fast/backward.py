"""The cascade backward: the chain of stages in reverse (``chain.py``), everything else in batched products.

The gradient of a memory is gathered once a turn for all stages, as a product of rank three (what was read, and both
heads' keys) beside what the write let through. Gradients of weights are one product each over all turns.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.training.fast.cell import (
    HeadGradients,
    WriteGradients,
    address_backward,
    lstm_backward,
    over_rows,
    write_backward,
)
from pipeline.training.fast.chain import Chain, Reaching
from pipeline.training.fast.parameters import SCALARS
from pipeline.training.fast.trace import Trace, Turn, Weights
from pipeline.training.models._ntm import READ, WRITE


class Gradients(NamedTuple):
    """derived: [K, T, B, C-1, D] or None; weights: of each of ``Weights``; a memory that is not learned has None."""

    derived: Tensor | None
    weights: Weights


def backward(d_outputs: Tensor, weights: Weights, trace: Trace, chain: Chain, learned_memory: bool) -> Gradients:
    """Gradients of ``forward``, given that of its result [K, T, B, H + M]."""
    passing = _Backward(weights, trace, chain, learned_memory)
    for n in reversed(range(trace.length)):
        passing.turn(n, d_outputs[:, n])
    return passing.gradients()


class _Backward:
    """What turn n + 1 has handed to turn n, zero at first: the gradients of

    read: [K, C, B, M], r^c(n); hidden, cell: [K, C, B, H]; at: of where the read and write heads stood [K, C, B, N];
    memory: [K, C, B, N, M], what turn n + 1 read. And the gradients before the nonlinearities, for the weights:
    d_gates: [K, C, T, B, 4 H]; d_reading: [K, C, T, B, M + 6], read key and scalars; d_writing: [K, C, T - 1, B, 3 M + 6],
    the write head's scalars, erase, add and the write head's key.
    """

    def __init__(self, weights: Weights, trace: Trace, chain: Chain, learned_memory: bool):
        self.weights, self.trace, self.chain, self.learned_memory = weights, trace, chain, learned_memory
        self.shape = trace.shape
        lead, batch, like = trace.inputs.shape[:2], trace.inputs.shape[3], trace.inputs
        width, hidden, slots = self.shape.width, self.shape.hidden, self.shape.slots
        self.read = like.new_zeros(*lead, batch, width)
        self.hidden, self.cell = like.new_zeros(*lead, batch, hidden), like.new_zeros(*lead, batch, hidden)
        self.at = [like.new_zeros(*lead, batch, slots) for _ in (READ, WRITE)]
        self.memory: Tensor | None = None
        self.d_gates = torch.empty_like(trace.gates)
        self.d_reading = torch.empty_like(trace.read_raw)
        self.d_writing = like.new_empty(*lead, trace.length - 1, batch, 3 * width + SCALARS)

    def turn(self, n: int, d_output: Tensor) -> None:
        """Turn n, given the gradient of its part of the result [K, B, H + M]."""
        turn, hidden = self.trace.turns[n], self.shape.hidden
        self.hidden[:, -1] += d_output[..., :hidden]
        self.read[:, -1] += d_output[..., hidden:]
        wanted = n > 0 or self.learned_memory  # the gradient of the memory that this turn read
        written = self._write(n, turn, wanted) if n + 1 < self.trace.length else None
        if turn.side_by_side:
            first = self._first_turn(turn)
        else:
            found = self.chain.backward(
                self.weights, self.trace, n, Reaching(self.read, self.hidden, self.cell, self.at[READ]),
                self.d_gates[:, :, n], self.d_reading[:, :, n],
            )  # fmt: skip
            self.cell, self.at[READ], first = found.cell, found.head.previous, found.first
            self.memory = self._memory(n, turn, found.head, written) if wanted else None
        self._own(n, first)

    def _write(self, n: int, turn: Turn, wanted: bool) -> tuple[WriteGradients, HeadGradients]:
        """The write heads, erase and add of all stages."""
        width, raw = self.shape.width, self.d_writing[:, :, n]
        d_write = write_backward(self.memory, turn.memory, turn.write.weights, turn.erase, turn.add, wanted)
        head = address_backward(d_write.weights + self.at[WRITE], turn.write)
        self.at[WRITE] = head.previous
        raw[..., :SCALARS] = head.raw
        torch.mul(d_write.erase, turn.erase * (1 - turn.erase), out=raw[..., SCALARS : SCALARS + width])
        raw[..., SCALARS + width : SCALARS + 2 * width] = d_write.add
        key = raw[..., SCALARS + 2 * width :]
        if turn.side_by_side:
            key.zero_()
        else:
            torch.addcmul(over_rows(head.dots, turn.memory), head.key_scale, turn.write_key, out=key)
        self.hidden += raw @ self.weights.heads[:, :, width + SCALARS :]
        return d_write, head

    def _first_turn(self, turn: Turn) -> Tensor:
        """Turn 1 of all stages at once: what it read was constant. Returns the gradient of r^0(1), [K, B, M]."""
        width, trace = self.shape.width, self.trace
        self.d_reading[:, :, 0] = 0
        if turn.read is not None:
            head = address_backward(self.at[READ], turn.read)
            self.at[READ] = head.previous
            self.d_reading[:, :, 0, :, width:] = head.raw
            self.hidden += head.raw @ self.weights.heads[:, :, width : width + SCALARS]
        self.cell = lstm_backward(
            self.hidden, self.cell, trace.gates[:, :, 0], trace.cells[:, :, 0], trace.squashed[:, :, 0],
            self.d_gates[:, :, 0],
        )  # fmt: skip
        return self.d_gates[:, 0, 0] @ self.weights.controller[:, 0, :, :width]

    def _memory(
        self, n: int, turn: Turn, read: HeadGradients, written: tuple[WriteGradients, HeadGradients] | None
    ) -> Tensor:
        """The gradient of the memories that turn n read, [K, C, B, N, M]."""
        width = self.shape.width
        left = [turn.read_weights, read.dots]
        right = [self.read, self.trace.read_raw[:, :, n, :, :width]]
        if written is not None:
            left.append(written[1].dots)
            right.append(turn.write_key)
        total = torch.stack(left, -1) @ torch.stack(right, -2)
        if written is not None:
            total += written[0].memory
        rows = read.rows if written is None else read.rows + written[1].rows
        return total.addcmul_(rows.unsqueeze(-1), turn.memory)

    def _own(self, n: int, first: Tensor) -> None:
        """What turn n hands to turn n - 1: gradients of [r^c(n-1); h^c(n-1)], with that of r^0(n) = r^C(n-1)."""
        before = self.shape.width + self.shape.dim
        d_gates = self.d_gates[:, :, n]
        if n == 0:  # one start for all sessions: its gradient is a sum over them
            d_gates, first = d_gates.sum(2, keepdim=True), first.sum(1, keepdim=True)
        own = d_gates @ self.weights.controller[..., before:]
        self.read, self.hidden = own.split([self.shape.width, self.shape.hidden], -1)
        self.read[:, -1] += first

    def gradients(self) -> Gradients:
        """Of everything that was learned, once all turns are done."""
        trace, width, dim = self.trace, self.shape.width, self.shape.dim
        d_gates = self.d_gates.flatten(2, 3)  # [K, C, T B, 4 H]
        derived = None
        if self.shape.stages > 1:
            product = d_gates[:, :-1] @ self.weights.controller[:, :-1, :, width : width + dim]
            derived = product.unflatten(2, trace.inputs.shape[2:4]).permute(0, 2, 3, 1, 4)
        reading, writing = self.d_reading.flatten(2, 3), self.d_writing.flatten(2, 3)
        hidden, wrote = trace.hidden.flatten(2, 3), trace.hidden[:, :, : trace.length - 1].flatten(2, 3)
        d_start = torch.stack([at.sum(2) for at in self.at], 2)
        starts = trace.starts
        return Gradients(
            derived,
            Weights(
                controller=d_gates.mT @ trace.inputs.flatten(2, 3),
                gate_bias=d_gates.sum(2),
                heads=torch.cat([reading.mT @ hidden, writing.mT @ wrote], 2),
                head_bias=torch.cat([reading.sum(2), writing.sum(2)], 2),
                hidden=self.hidden.squeeze(2),
                cell=self.cell.sum(2),
                read=self.read.squeeze(2),
                start=starts * (d_start - (d_start * starts).sum(-1, keepdim=True)),
                memory=self.memory.sum(2) if self.learned_memory else None,
            ),
        )
