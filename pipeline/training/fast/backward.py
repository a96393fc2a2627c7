"""The cascade backward: the chain of stages in reverse (``chain.py``), everything else in batched products.

The gradient of a memory is gathered once a turn for all stages and in one place: what the write let through, and a
product of rank three (what was read, and both heads' keys). Gradients of weights are one product each over all turns.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.training.fast.cell import (
    HeadGradients,
    address_backward,
    let_through,
    lstm_backward,
    lstm_slopes,
    norm_slopes,
    of_softmax,
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
    """Gradients of ``forward``, given that of its result [K, T, B, M + H]."""
    passing = _Backward(weights, trace, chain, learned_memory)
    for n in reversed(range(trace.length)):
        passing.turn(n, d_outputs[:, n])
    return passing.gradients()


class _Backward:
    """What turn n + 1 has handed to turn n, zero at first: the gradients of

    state: [K, C, B, M + H], [r^c(n); h^c(n)], of which read and hidden are views; cell: [K, C, B, H]; at: of where the
    read and write heads stood [K, C, B, N]; trace.d_memory: of what turn n + 1 read. And the gradients before the
    nonlinearities, for the weights: d_gates: [K, C, T, B, 4 H]; d_reading: [K, C, T, B, M + 6], read key and scalars;
    d_writing: [K, C, T - 1, B, 3 M + 6], the write head's scalars, erase, add and the write head's key.
    """

    def __init__(self, weights: Weights, trace: Trace, chain: Chain, learned_memory: bool):
        self.weights, self.trace, self.chain, self.learned_memory = weights, trace, chain, learned_memory
        self.shape = trace.shape
        like, lead = trace.states, (*trace.states.shape[:2], trace.batch)
        width, hidden, slots = self.shape.width, self.shape.hidden, self.shape.slots
        self._hand_on(like.new_zeros(*lead, width + hidden), like.new_zeros(*lead, hidden))
        self.at = [like.new_zeros(*lead, slots) for _ in (READ, WRITE)]
        self.d_gates = torch.empty_like(trace.gates)
        self.d_reading = torch.empty_like(trace.read_raw)
        self.d_writing = like.new_empty(*lead[:2], trace.length - 1, trace.batch, 3 * width + SCALARS)

    def _hand_on(self, state: Tensor, cell: Tensor) -> None:
        self.state, self.cell = state, cell
        self.read, self.hidden = state.tensor_split([self.shape.width], -1)

    def turn(self, n: int, d_output: Tensor) -> None:
        """Turn n, given the gradient of its part of the result [K, B, M + H]."""
        turn = self.trace.turns[n]
        self.state[:, -1] += d_output
        writing = self._write(n, turn) if n + 1 < self.trace.length else None
        if turn.side_by_side:
            cell, first = self._first_turn(turn)
        else:
            head, cell, first = self.chain.backward(
                self.weights, self.trace, n, Reaching(self.read, self.hidden, self.cell, self.at[READ]),
                self.d_gates[:, :, n], self.d_reading[:, :, n],
            )  # fmt: skip
            self.at[READ] = head.previous
            if n > 0 or self.learned_memory:
                self._memory(n, turn, head, writing)
        self._own(n, cell, first)

    def _write(self, n: int, turn: Turn) -> HeadGradients:
        """The write heads, erase and add of all stages."""
        width, raw, d_memory = self.shape.width, self.d_writing[:, :, n], self.trace.d_memory
        scalars, d_erase, d_add, d_key = raw.tensor_split([SCALARS, SCALARS + width, SCALARS + 2 * width], -1)
        found = write_backward(d_memory, turn.memory, turn.write.weights, turn.erase, turn.add, self.trace.scratch)
        torch.ops.aten.sigmoid_backward.grad_input(found.erase, turn.erase, grad_input=d_erase)
        d_add.copy_(found.add)
        head = address_backward(found.weights.add_(self.at[WRITE]), turn.write, scalars)
        self.at[WRITE] = head.previous
        if turn.side_by_side:
            d_key.zero_()
        else:
            torch.addcmul(over_rows(head.dots, turn.memory), head.key_pull, turn.write_key, out=d_key)
        self.hidden += raw @ self.weights.heads[:, :, :-1, width + SCALARS :].mT
        return head

    def _first_turn(self, turn: Turn) -> tuple[Tensor, Tensor]:
        """Turn 1 of all stages at once: what it read was constant. Gradients of the first cells and of r^0(1)."""
        width, hidden, trace = self.shape.width, self.shape.hidden, self.trace
        self.d_reading[:, :, 0] = 0
        if turn.read is not None:
            raw = self.d_reading[:, :, 0, :, width:]
            self.at[READ] = address_backward(self.at[READ], turn.read, raw).previous
            self.hidden += raw @ self.weights.heads[:, :, :-1, width : width + SCALARS].mT
        gates, slopes = trace.gates[:, :, 0], self.d_gates[:, :, 0]
        to_cell = lstm_slopes(gates, trace.cells[:, :, 0], trace.squashed[:, :, 0], slopes)
        cell = lstm_backward(self.hidden, self.cell, gates[..., hidden : 2 * hidden], to_cell, slopes)
        return cell, slopes[:, 0] @ self.weights.from_previous[:, 0]

    def _memory(self, n: int, turn: Turn, read: HeadGradients, writing: HeadGradients | None) -> None:
        """The gradient of the memories that turn n read, in the place of those that it left."""
        trace, width = self.trace, self.shape.width
        left, right = [turn.read_weights, read.dots], [self.read, trace.read_raw[:, :, n, :, :width]]
        pull, total = read.pull, trace.d_memory
        if writing is not None:
            left.append(writing.dots)
            right.append(turn.write_key)
            pull = pull + writing.pull
            let_through(total, turn.write.weights, turn.erase, trace.scratch)
        kept = 0 if writing is None else 1
        product = torch.stack(left, -1).flatten(0, 2), torch.stack(right, -2).flatten(0, 2)
        total.flatten(0, 2).baddbmm_(*product, beta=kept)
        total.addcmul_((pull * norm_slopes(turn.rows.norms)).unsqueeze(-1), turn.memory)

    def _own(self, n: int, cell: Tensor, first: Tensor) -> None:
        """What turn n hands to turn n - 1: gradients of [r^c(n-1); h^c(n-1)], with that of r^0(n) = r^C(n-1)."""
        d_gates = self.d_gates[:, :, n]
        if n == 0:  # one start for all sessions: its gradient is a sum over them
            d_gates, first = d_gates.sum(2, keepdim=True), first.sum(1, keepdim=True)
        self._hand_on(d_gates @ self.weights.from_own, cell)
        self.read[:, -1] += first

    def gradients(self) -> Gradients:
        """Of everything that was learned, once all turns are done."""
        trace, weights, width = self.trace, self.weights, self.shape.width
        d_gates = self.d_gates.flatten(2, 3)  # [K, C, T B, 4 H]
        derived = None
        if self.shape.stages > 1:
            product = d_gates[:, :-1] @ weights.from_feature[:, :-1]
            derived = product.unflatten(2, (trace.length, trace.batch)).permute(0, 2, 3, 1, 4)
        reading, writing = self.d_reading.flatten(2, 3), self.d_writing.flatten(2, 3)
        given = trace.states[:, :, 1:, :, width:].flatten(2, 3)  # [h; 1]
        from_previous, heads = torch.empty_like(weights.from_previous), torch.empty_like(weights.heads)
        for k in range(len(heads)):  # into their places: a cat would copy the largest of all gradients
            d_raw, reads = d_gates[k].mT, trace.states[k, ..., :width]
            torch.bmm(d_raw[:1], reads[-1:, :-1].flatten(1, 2), out=from_previous[k, :1])
            torch.bmm(d_raw[1:], reads[:-1, 1:].flatten(1, 2), out=from_previous[k, 1:])
            torch.bmm(given[k].mT, reading[k], out=heads[k, ..., : width + SCALARS])
            torch.bmm(given[k, :, : writing.shape[2]].mT, writing[k], out=heads[k, ..., width + SCALARS :])
        d_start = torch.stack([at.sum(2) for at in self.at], 2)
        return Gradients(
            derived,
            Weights(
                from_previous=from_previous,
                from_feature=d_gates.mT @ trace.features.flatten(2, 3),
                from_own=d_gates.mT @ trace.states[:, :, :-1, :, :-1].flatten(2, 3),
                gate_bias=d_gates.sum(2),
                heads=heads,
                state=self.state.squeeze(2),
                cell=self.cell.sum(2),
                start=of_softmax(d_start, trace.starts),
                memory=trace.d_memory.sum(2) if self.learned_memory else None,
            ),
        )
