"""Forward pass of the cascade, turn by turn, which saves the activations for the backward pass.

Terms that depend only on the inputs are one product for all stages and turns; terms that depend on the previous turn
are one product per turn for all stages; only r^{c-1}(n) -> gates -> read head -> r^c(n) is a chain of stages
(``turn_ops.py``). The write head, erase and add are not part of the chain, and the last turn writes nothing. If all
memories start from one constant, turn 1 reads that constant regardless of the weights: its stages then run side by
side and need no key. Values that are equal for all sessions, as the whole initial state is, are computed once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.training.cascade.cell import MemoryRows, address, lstm
from pipeline.training.cascade.parameters import SCALARS
from pipeline.training.cascade.products import add_product
from pipeline.training.cascade.saved_activations import SavedActivations, Turn, Weights
from pipeline.training.cascade.turn_ops import TurnOps
from pipeline.training.models._ntm import READ, WRITE


def forward(queries: Tensor, derived: Tensor | None, weights: Weights, saved: SavedActivations, ops: TurnOps) -> Tensor:
    """Compute [r^C; h^C], [K, T, B, M + H]. queries: [K, T, B, D]; derived: [K, T, B, C-1, D], None for C = 1."""
    saved.features[:, -1] = queries
    if derived is not None:
        saved.features[:, :-1] = derived.permute(0, 3, 1, 2, 4)
    gates = saved.gates.flatten(2, 3)
    gates[:] = weights.gate_bias.unsqueeze(2)
    add_product(gates, saved.features.flatten(2, 3), weights.from_feature.mT)
    _start(saved, weights)
    for n in range(saved.length):
        if n:
            add_product(saved.gates[:, :, n], saved.states[:, :, n, :, :-1], weights.from_own.mT)
        if saved.turns[n].side_by_side:
            _first_turn(saved, weights)
        else:
            ops.forward(saved, weights, n, _previous(saved, n, READ))
        if n + 1 < saved.length:
            ops.write(saved, n, saved.heads(weights, n, saved.writing(n)), _previous(saved, n, WRITE))
    return saved.states[:, -1, 1:, :, :-1].contiguous()


def _start(saved: SavedActivations, weights: Weights) -> None:
    """Set the initial state, and add its part to the gates of turn 1."""
    saved.states[:, :, 0, :, :-1] = weights.state.unsqueeze(2)
    saved.cells[:, :, 0] = weights.cell.unsqueeze(2)
    saved.gates[:, :, 0] += (weights.from_own @ weights.state.unsqueeze(-1)).mT
    torch.softmax(weights.start, -1, out=saved.starts)
    if saved.constant is None:
        memory = weights.memory.unsqueeze(2).expand(-1, -1, saved.batch, -1, -1)
        saved.turns[:] = [Turn(MemoryRows.of(memory))]
    else:
        row = weights.memory[:, :, None, :1]
        saved.turns[:] = [Turn(MemoryRows(row, row[..., 0]), side_by_side=True)]


def _previous(saved: SavedActivations, n: int, head: int) -> Tensor:
    """Return the addressing weights of a head of every stage after turn n - 1, [K, C, B, N]."""
    if n == 0:
        return saved.starts[:, :, head].unsqueeze(2).expand(-1, -1, saved.batch, -1)
    turn = saved.turns[n - 1]
    return turn.write.weights if head == WRITE else turn.read_weights


def _first_turn(saved: SavedActivations, weights: Weights) -> None:
    """Compute turn 1 of all stages at once: all memories, and so all read vectors, equal one constant."""
    width, hidden = saved.shape.width, saved.hidden(0)
    assert saved.constant is not None
    arriving = torch.full_like(weights.state[..., :width, None], saved.constant)
    arriving[:, 0, :, 0] = weights.state[:, -1, :width]  # r^0(1) = r^C(0)
    saved.gates[:, :, 0] += (weights.from_previous @ arriving).mT
    lstm(saved.gates[:, :, 0], saved.cells[:, :, 0], saved.cells[:, :, 1], saved.squashed[:, :, 0], hidden)
    saved.states[:, :, 1, :, :width] = saved.constant
    if saved.length > 1:
        raw = saved.heads(weights, 0, slice(width, width + SCALARS))
        saved.turns[0].read = address(None, None, raw, _previous(saved, 0, READ))
        saved.turns[0].read_weights = saved.turns[0].read.weights
