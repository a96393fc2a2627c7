"""The cascade backward: the chain of stages in reverse (``turn_ops.py``), everything else in batched products.

Gradients of weights are one product each over all turns. What is the same for all sessions, as much of what turn 1 finds
is, enters them as one row.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.training.cascade.cell import address_backward, lstm_backward, lstm_slopes, of_softmax
from pipeline.training.cascade.parameters import SCALARS
from pipeline.training.cascade.products import product
from pipeline.training.cascade.saved_activations import SavedActivations, Turn, Weights, aligned
from pipeline.training.cascade.turn_ops import GradIn, TurnOps
from pipeline.training.models._ntm import READ, WRITE


class Gradients(NamedTuple):
    """derived: [K, T, B, C-1, D] or None; weights: of each of ``Weights``; a memory that is not learned has None."""

    derived: Tensor | None
    weights: Weights


def backward(
    d_outputs: Tensor, weights: Weights, trace: SavedActivations, chain: TurnOps, learned_memory: bool
) -> Gradients:
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

    def __init__(self, weights: Weights, trace: SavedActivations, chain: TurnOps, learned_memory: bool):
        self.weights, self.trace, self.chain, self.learned_memory = weights, trace, chain, learned_memory
        self.shape = trace.shape
        like, lead = trace.states, (*trace.states.shape[:2], trace.batch)
        width, hidden, slots = self.shape.width, self.shape.hidden, self.shape.slots
        self._hand_on(like.new_zeros(*lead, width + hidden), like.new_zeros(*lead, hidden))
        self.at = [like.new_zeros(*lead, slots) for _ in (READ, WRITE)]
        self.d_gates = torch.empty_like(trace.gates)
        self.d_reading = aligned(like, *trace.read_raw.shape)
        self.d_writing = aligned(like, *lead[:2], trace.length - 1, trace.batch, 3 * width + SCALARS)

    def _hand_on(self, state: Tensor, cell: Tensor) -> None:
        self.state, self.cell = state, cell
        self.read, self.hidden = state.tensor_split([self.shape.width], -1)

    def turn(self, n: int, d_output: Tensor) -> None:
        """Turn n, given the gradient of its part of the result [K, B, M + H]."""
        turn = self.trace.turns[n]
        self.state[:, -1] += d_output
        writing = None
        if n + 1 < self.trace.length:
            writing = self.chain.write_backward(self.trace, n, self.at[WRITE], self.d_writing)
            self.at[WRITE], part = writing.previous, self.trace.writing(n)
            d_raw = self.d_writing[:, :, n, :, : part.stop - part.start]
            self.hidden += product(d_raw, self.weights.heads[:, :, :-1, part].mT)
        if turn.side_by_side:
            cell, first = self._first_turn(turn)
        else:
            reaching = GradIn(self.state, self.read, self.hidden, self.cell, self.at[READ])
            self.at[READ], cell, first = self.chain.backward(
                self.weights, self.trace, n, reaching, writing, self.d_gates[:, :, n], self.d_reading
            )
        self._own(n, cell, first)

    def _first_turn(self, turn: Turn) -> tuple[Tensor, Tensor]:
        """Turn 1 of all stages at once: what it read was constant. Gradients of the first cells and of r^0(1)."""
        width, hidden, trace = self.shape.width, self.shape.hidden, self.trace
        if turn.read is None:
            self.d_reading[:, :, 0] = 0
        else:
            raw = self.d_reading[:, :, 0, :, width:]
            self.at[READ] = address_backward(self.at[READ], turn.read, raw).previous
            self.hidden += raw @ self.weights.heads[:, :, :-1, width : width + SCALARS].mT
        gates, slopes = trace.gates[:, :, 0], self.d_gates[:, :, 0]
        to_cell = lstm_slopes(gates, trace.cells[:, :, 0], trace.squashed[:, :, 0], slopes)
        cell = lstm_backward(self.hidden, self.cell, gates[..., hidden : 2 * hidden], to_cell, slopes)
        return cell, slopes[:, 0].sum(1, keepdim=True) @ self.weights.from_previous[:, 0]

    def _own(self, n: int, cell: Tensor, first: Tensor) -> None:
        """What turn n hands to turn n - 1: gradients of [r^c(n-1); h^c(n-1)], with that of r^0(n) = r^C(n-1)."""
        d_gates = self.d_gates[:, :, n]
        if n == 0:  # one start for all sessions: its gradient is a sum over them
            d_gates, first = d_gates.sum(2, keepdim=True), first.sum(1, keepdim=True)
        self._hand_on(product(d_gates, self.weights.from_own), cell)
        self.read[:, -1] += first

    def gradients(self) -> Gradients:
        """Of everything that was learned, once all turns are done. Uses up ``d_gates``."""
        trace, weights = self.trace, self.weights
        d_gates = self.d_gates.flatten(2, 3)  # [K, C, T B, 4 H]
        derived = None
        if self.shape.stages > 1:
            before = product(d_gates[:, :-1], weights.from_feature[:, :-1])
            derived = before.unflatten(2, (trace.length, trace.batch)).permute(0, 2, 3, 1, 4)
        from_feature, gate_bias = product(d_gates.mT, trace.features.flatten(2, 3)), d_gates.sum(2)
        from_previous, from_own = self._of_states()
        d_start = torch.stack([at.sum(2) for at in self.at], 2)
        return Gradients(
            derived,
            Weights(
                from_previous=from_previous,
                from_feature=from_feature,
                from_own=from_own,
                gate_bias=gate_bias,
                heads=self._of_heads(),
                state=self.state.squeeze(2),
                cell=self.cell.sum(2),
                start=of_softmax(d_start, trace.starts),
                memory=trace.d_memory.sum(2) if self.learned_memory else None,
            ),
        )

    def _of_states(self) -> tuple[Tensor, Tensor]:
        """Gradients of ``from_previous`` and ``from_own``.

        Of what all sessions find alike in turn 1 one row is enough, the last session's, with the sum of all gradients.
        """
        trace, last, shared = self.trace, self.trace.batch - 1, self.d_gates[:, :, 0].sum(2)
        alike = trace.turns[0].side_by_side
        from_previous = None if alike else self._of_previous(0)
        self.d_gates[:, :, 0, last] = shared
        from_own = _product(self.d_gates, trace.states[:, :, :-1, :, :-1], last)
        return self._of_previous(last) if from_previous is None else from_previous, from_own

    def _of_previous(self, start: int) -> Tensor:
        """Of r^{c-1}(n) for each stage c; the first stage reads what the last one left before."""
        found, reads = torch.empty_like(self.weights.from_previous), self.trace.states[..., : self.shape.width]
        _product(self.d_gates[:, :1], reads[:, -1:, :-1], start, found[:, :1])
        _product(self.d_gates[:, 1:], reads[:, :-1, 1:], start, found[:, 1:])
        return found

    def _of_heads(self) -> Tensor:
        """Of the heads' outputs; the keys of turn 1 are not asked for where nothing is addressed by content."""
        width, trace = self.shape.width, self.trace
        found, given = torch.empty_like(self.weights.heads), trace.states[:, :, 1:, :, width:]
        keyed = trace.batch if trace.turns[0].side_by_side else 0
        _product(given, self.d_reading[..., :width], keyed, found[..., :width])
        _product(given, self.d_reading[..., width:], 0, found[..., width : width + SCALARS])
        written = found[..., width + SCALARS :].tensor_split([SCALARS + 2 * width], -1)
        _product(given[:, :, :-1], self.d_writing[..., : SCALARS + 2 * width], 0, written[0])
        _product(given[:, :, :-1], self.d_writing[..., SCALARS + 2 * width :], keyed, written[1])
        return found


def _product(one: Tensor, other: Tensor, start: int, out: Tensor | None = None) -> Tensor:
    """Sum over turns and sessions, of these from row ``start`` on: [K, C, T, B, I], [K, C, T, B, J] -> [K, C, I, J].

    Into its place: a cat would copy the largest of all gradients.
    """
    if out is None:
        out = one.new_empty(*one.shape[:2], one.shape[-1], other.shape[-1])
    return product(one.flatten(2, 3)[:, :, start:].mT, other.flatten(2, 3)[:, :, start:], out)
