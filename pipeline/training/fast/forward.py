"""The cascade forward, turn by turn, with everything that its backward needs kept.

What depends on the inputs alone is one product for all stages and turns; what depends on the turn before is one product
a turn for all stages; only r^{c-1}(n) -> gates -> read head -> r^c(n) is a chain of stages (``chain.py``). The write head, erase and add
are off that chain, and the last turn writes nothing. Where every memory starts from one constant, turn 1 reads that
constant whatever the weights: its stages then run side by side and need no key.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.training.fast.cell import address, lstm, row_norms, write
from pipeline.training.fast.chain import Chain
from pipeline.training.fast.parameters import SCALARS
from pipeline.training.fast.trace import Trace, Turn, Weights
from pipeline.training.models._ntm import READ, WRITE


def forward(queries: Tensor, derived: Tensor | None, weights: Weights, trace: Trace, chain: Chain) -> Tensor:
    """queries [K, T, B, D], derived features [K, T, B, C-1, D] (None for C = 1) -> [h^C; r^C], [K, T, B, H + M]."""
    shape = trace.shape
    feature = slice(shape.width, shape.width + shape.dim)
    trace.inputs[:, -1, ..., feature] = queries
    if derived is not None:
        trace.inputs[:, :-1, ..., feature] = derived.permute(0, 3, 1, 2, 4)
    torch.baddbmm(
        weights.gate_bias.flatten(0, 1).unsqueeze(1),
        trace.inputs[..., feature].flatten(2, 3).flatten(0, 1),
        weights.controller[..., feature].flatten(0, 1).mT,
        out=trace.gates.flatten(2, 3).flatten(0, 1),
    )
    torch.softmax(weights.start, -1, out=trace.starts)
    trace.turns.clear()
    for n in range(trace.length):
        _enter(trace, weights, n)
        if n == 0 and trace.constant is not None:
            _first_turn(trace, weights)
        else:
            chain.forward(trace, weights, n, _previous(trace, n, READ))
        if n + 1 < trace.length:
            _write(trace, weights, n)
    return torch.cat([trace.hidden[:, -1], trace.reads[:, -1]], -1)


def _enter(trace: Trace, weights: Weights, n: int) -> None:
    """What is known before turn n of all stages: the last reads and hidden states, and their part of the gates."""
    width, before = trace.shape.width, trace.shape.width + trace.shape.dim
    own = trace.inputs[:, :, n, :, before:]  # [r^c(n-1); h^c(n-1)]
    if n == 0:
        batch = trace.inputs.shape[3]
        own[..., :width] = weights.read.unsqueeze(2)
        own[..., width:] = weights.hidden.unsqueeze(2)
        trace.cells[:, :, 0] = weights.cell.unsqueeze(2)
        trace.inputs[:, 0, 0, :, :width] = weights.read[:, -1].unsqueeze(1)  # r^0(1) = r^C(0)
        memory = weights.memory.unsqueeze(2).expand(-1, -1, batch, -1, -1)
        trace.turns.append(Turn(memory, None if trace.constant is not None else row_norms(memory)))
    else:
        own[..., :width] = trace.reads[:, :, n - 1]
        own[..., width:] = trace.hidden[:, :, n - 1]
        trace.inputs[:, 0, n, :, :width] = trace.reads[:, -1, n - 1]
    _add_product(trace.gates[:, :, n], own, weights.controller[..., before:])


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total [K, C, B, O] += left [K, C, B, I] @ right [K, C, O, I] transposed, in one batched product."""
    total.flatten(0, 1).baddbmm_(left.flatten(0, 1), right.flatten(0, 1).mT)


def _previous(trace: Trace, n: int, head: int) -> Tensor:
    """Where a head of every stage stood after turn n - 1: [K, C, B, N]."""
    if n == 0:
        return trace.starts[:, :, head].unsqueeze(2).expand(-1, -1, trace.inputs.shape[3], -1)
    turn = trace.turns[n - 1]
    return turn.write.weights if head == WRITE else turn.read_weights


def _first_turn(trace: Trace, weights: Weights) -> None:
    """Turn 1 of all stages at once: all rows of all memories are one constant, and so is what is read from them."""
    width = trace.shape.width
    trace.inputs[:, 1:, 0, :, :width] = trace.constant
    _add_product(trace.gates[:, :, 0], trace.inputs[:, :, 0, :, :width], weights.controller[..., :width])
    trace.hidden[:, :, 0], trace.cells[:, :, 1], trace.squashed[:, :, 0] = lstm(
        trace.gates[:, :, 0], trace.cells[:, :, 0]
    )
    trace.reads[:, :, 0] = trace.constant
    if trace.length > 1:
        raw = trace.hidden[:, :, 0] @ weights.heads[:, :, width : width + SCALARS].mT
        raw += weights.head_bias[:, :, None, width : width + SCALARS]
        trace.turns[0].read = address(None, None, None, raw, _previous(trace, 0, READ))
        trace.turns[0].read_weights = trace.turns[0].read.weights


def _write(trace: Trace, weights: Weights, n: int) -> None:
    """Turn n's write of all stages at once, and the memories that turn n + 1 reads."""
    width, turn = trace.shape.width, trace.turns[n]
    lowest = width + SCALARS
    highest = lowest + SCALARS + 2 * width if turn.side_by_side else None  # without the key
    raw = trace.hidden[:, :, n] @ weights.heads[:, :, lowest:highest].mT
    raw += weights.head_bias[:, :, None, lowest:highest]
    scalars, erase, add, *key = raw.split([SCALARS, width, width] + ([] if turn.side_by_side else [width]), -1)
    turn.erase, turn.add, turn.write_key = erase.sigmoid(), add, key[0] if key else None
    where = (None, None, None) if turn.side_by_side else (turn.memory, turn.norms, turn.write_key)
    turn.write = address(*where, scalars, _previous(trace, n, WRITE))
    memory = write(turn.memory, turn.write.weights, turn.erase, turn.add)
    trace.turns.append(Turn(memory, row_norms(memory)))
