"""Backward pass of the cascade: the chain of stages in reverse (``turn_ops.py``), all else in batched products.

Gradients of weights are one product each over all turns; values equal for all sessions enter as one row.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.training.cascade.cell import address_backward, lstm_backward, lstm_slopes, of_softmax
from pipeline.training.cascade.parameters import SCALARS
from pipeline.training.cascade.products import product
from pipeline.training.cascade.saved_activations import SavedActivations, Turn, Weights, aligned
from pipeline.training.cascade.turn_ops import GradIn, TurnOps
from pipeline.training.models._ntm import READ, WRITE


def backward(
    d_outputs: Tensor, weights: Weights, saved: SavedActivations, ops: TurnOps, learned_memory: bool
) -> tuple[Tensor | None, ...]:
    """Return the gradients of ``forward``, given the gradient of its result [K, T, B, M + H].

    Of derived, [K, T, B, C-1, D] or None, then those of ``Weights``, in its order, None for a memory not learned.
    """
    passing = _Backward(weights, saved, ops, learned_memory)
    for n in reversed(range(saved.length)):
        passing.turn(n, d_outputs[:, n])
    return passing.gradients()


class _Backward:
    """Gradients passed from turn n + 1 to turn n, zero at first, and gradients before the nonlinearities.

    state: [K, C, B, M + H], of [r^c(n); h^c(n)], with the views read and hidden; cell: [K, C, B, H]; at: [K, C, B, N]
    each, of the read and write heads' weights; saved.d_memory: of the memories that turn n + 1 read.
    For the weights: d_gates: [K, C, T, B, 4 H]; d_reading: [K, C, T, B, M + 6], of read key and scalars; d_writing:
    [K, C, T - 1, B, 3 M + 6], of the write head's scalars, erase, add and key.
    """

    def __init__(self, weights: Weights, saved: SavedActivations, ops: TurnOps, learned_memory: bool):
        self.weights, self.saved, self.ops, self.learned_memory = weights, saved, ops, learned_memory
        self.shape = saved.shape
        like, lead = saved.states, (*saved.states.shape[:2], saved.batch)
        width, hidden, slots = self.shape.width, self.shape.hidden, self.shape.slots
        self._set_gradients(like.new_zeros(*lead, width + hidden), like.new_zeros(*lead, hidden))
        self.at = [like.new_zeros(*lead, slots) for _ in (READ, WRITE)]
        self.d_gates = torch.empty_like(saved.gates)
        self.d_reading = aligned(like, *saved.read_raw.shape)
        self.d_writing = aligned(like, *lead[:2], saved.length - 1, saved.batch, 3 * width + SCALARS)

    def _set_gradients(self, state: Tensor, cell: Tensor) -> None:
        self.state, self.cell = state, cell
        self.read, self.hidden = state.tensor_split([self.shape.width], -1)

    def turn(self, n: int, d_output: Tensor) -> None:
        """Process turn n, given the gradient of its part of the result [K, B, M + H]."""
        turn = self.saved.turns[n]
        self.state[:, -1] += d_output
        writing = None
        if n + 1 < self.saved.length:
            writing = self.ops.write_backward(self.saved, n, self.at[WRITE], self.d_writing)
            self.at[WRITE], part = writing.previous, self.saved.writing(n)
            d_raw = self.d_writing[:, :, n, :, : part.stop - part.start]
            self.hidden += product(d_raw, self.weights.heads[:, :, :-1, part].mT)
        if turn.side_by_side:
            cell, first = self._first_turn(turn)
        else:
            gates = self.d_gates[:, :, n]
            given = GradIn(self.state, self.read, self.hidden, self.cell, self.at[READ], writing, gates, self.d_reading)
            self.at[READ], cell, first = self.ops.backward(self.saved, self.weights, n, given)
        self._own(n, cell, first)

    def _first_turn(self, turn: Turn) -> tuple[Tensor, Tensor]:
        """Process turn 1, whose read vectors are constant; return gradients of the initial cells and of r^0(1)."""
        width, hidden, saved = self.shape.width, self.shape.hidden, self.saved
        if turn.read is None:
            self.d_reading[:, :, 0] = 0
        else:
            raw = self.d_reading[:, :, 0, :, width:]
            self.at[READ] = address_backward(self.at[READ], turn.read, raw).previous
            self.hidden += raw @ self.weights.heads[:, :, :-1, width : width + SCALARS].mT
        gates, slopes = saved.gates[:, :, 0], self.d_gates[:, :, 0]
        to_cell = lstm_slopes(gates, saved.cells[:, :, 0], saved.squashed[:, :, 0], slopes)
        cell = lstm_backward(self.hidden, self.cell, gates[..., hidden : 2 * hidden], to_cell, slopes)
        return cell, slopes[:, 0].sum(1, keepdim=True) @ self.weights.from_previous[:, 0]

    def _own(self, n: int, cell: Tensor, first: Tensor) -> None:
        """Pass gradients from turn n to turn n - 1: of [r^c(n-1); h^c(n-1)], including that of r^0(n) = r^C(n-1)."""
        d_gates = self.d_gates[:, :, n]
        if n == 0:  # all sessions share the initial state, so its gradient is a sum over sessions
            d_gates, first = d_gates.sum(2, keepdim=True), first.sum(1, keepdim=True)
        self._set_gradients(product(d_gates, self.weights.from_own), cell)
        self.read[:, -1] += first

    def gradients(self) -> tuple[Tensor | None, ...]:
        """Return the gradients of all learned tensors, after all turns. Overwrites ``d_gates``."""
        saved, weights = self.saved, self.weights
        d_gates = self.d_gates.flatten(2, 3)  # [K, C, T B, 4 H]
        derived = None
        if self.shape.stages > 1:
            before = product(d_gates[:, :-1], weights.from_feature[:, :-1])
            derived = before.unflatten(2, (saved.length, saved.batch)).permute(0, 2, 3, 1, 4)
        from_feature, gate_bias = product(d_gates.mT, saved.features.flatten(2, 3)), d_gates.sum(2)
        from_previous, from_own = self._of_states()
        start = of_softmax(torch.stack([at.sum(2) for at in self.at], 2), saved.starts)
        memory = saved.d_memory.sum(2) if self.learned_memory else None
        initial = (self.state.squeeze(2), self.cell.sum(2), start, memory)
        return derived, from_previous, from_feature, from_own, gate_bias, self._of_heads(), *initial

    def _of_states(self) -> tuple[Tensor, Tensor]:
        """Return the gradients of ``from_previous`` and ``from_own``.

        Inputs of turn 1 equal for all sessions are taken from the last session's row, with the sum of the gradients.
        """
        saved, last, shared = self.saved, self.saved.batch - 1, self.d_gates[:, :, 0].sum(2)
        alike = saved.turns[0].side_by_side
        from_previous = None if alike else self._of_previous(0)
        self.d_gates[:, :, 0, last] = shared
        from_own = _product(self.d_gates, saved.states[:, :, :-1, :, :-1], last)
        return self._of_previous(last) if from_previous is None else from_previous, from_own

    def _of_previous(self, start: int) -> Tensor:
        """Return the gradient of ``from_previous``; the first stage reads the last stage's r^C(n-1)."""
        found, reads = torch.empty_like(self.weights.from_previous), self.saved.states[..., : self.shape.width]
        _product(self.d_gates[:, :1], reads[:, -1:, :-1], start, found[:, :1])
        _product(self.d_gates[:, 1:], reads[:, :-1, 1:], start, found[:, 1:])
        return found

    def _of_heads(self) -> Tensor:
        """Return the gradient of ``heads``; keys of turn 1 are skipped if it uses no content addressing."""
        width, saved = self.shape.width, self.saved
        found, given = torch.empty_like(self.weights.heads), saved.states[:, :, 1:, :, width:]
        keyed = saved.batch if saved.turns[0].side_by_side else 0
        _product(given, self.d_reading[..., :width], keyed, found[..., :width])
        _product(given, self.d_reading[..., width:], 0, found[..., width : width + SCALARS])
        written = found[..., width + SCALARS :].tensor_split([SCALARS + 2 * width], -1)
        _product(given[:, :, :-1], self.d_writing[..., : SCALARS + 2 * width], 0, written[0])
        _product(given[:, :, :-1], self.d_writing[..., SCALARS + 2 * width :], keyed, written[1])
        return found


def _product(one: Tensor, other: Tensor, start: int, out: Tensor | None = None) -> Tensor:
    """Sum products over turns and sessions, from row ``start`` on: [K, C, T, B, I], [K, C, T, B, J] -> [K, C, I, J].

    Written to ``out``, because concatenation would copy the largest gradients.
    """
    if out is None:
        out = one.new_empty(*one.shape[:2], one.shape[-1], other.shape[-1])
    return product(one.flatten(2, 3)[:, :, start:].mT, other.flatten(2, 3)[:, :, start:], out)
