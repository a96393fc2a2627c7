"""A turn of all stages as torch operations: the plain form, with which the compiled forms are compared."""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.training.cascade import cell
from pipeline.training.cascade.cell import HeadGradients, HeadWeights, MemoryRows
from pipeline.training.cascade.parameters import SCALARS
from pipeline.training.cascade.products import add_product, product
from pipeline.training.cascade.saved_activations import SavedActivations, Turn, Weights
from pipeline.training.cascade.turn_ops import GradIn, GradOut


class TorchTurn:
    """Turn operations stage by stage."""

    def forward(self, saved: SavedActivations, weights: Weights, n: int, previous: Tensor) -> None:
        turn, width = saved.turns[n], saved.shape.width
        heads: list[HeadWeights] = []
        for c in range(saved.shape.stages):
            raw = control(saved, weights, n, c)
            rows = MemoryRows(turn.rows.memory[:, c], turn.rows.norms[:, c])
            heads.append(cell.address(rows, raw[..., :width], raw[..., width:], previous[:, c]))
            saved.states[:, c, n + 1, :, :width] = cell.over_rows(heads[-1].weights, rows.memory)
        turn.read, turn.read_weights = heads, torch.stack([head.weights for head in heads], 1)

    def write(self, saved: SavedActivations, n: int, raw: Tensor, previous: Tensor) -> None:
        turn = saved.turns[n]
        scalars, erase, add, key = _parts(raw, saved.shape.width)
        erase.sigmoid_()
        turn.write_raw, turn.write = raw, cell.address(None if turn.side_by_side else turn.rows, key, scalars, previous)
        memory = cell.write(turn.rows.memory, turn.write.weights, erase, add, saved.memories[n])
        saved.turns.append(Turn(MemoryRows.of(memory)))

    def write_backward(self, saved: SavedActivations, n: int, at: Tensor, d_raws: Tensor) -> HeadGradients:
        turn, width = saved.turns[n], saved.shape.width
        _, erase, add, key = _parts(turn.write_raw, width)
        scalars, d_erase, d_add, d_key = _parts(d_raws[:, :, n], width)
        given = (saved.d_memory, turn.rows.memory, turn.write.weights, erase, add, saved.scratch)
        d_weights, d_erased, d_added = cell.write_backward(*given)
        torch.ops.aten.sigmoid_backward.grad_input(d_erased, erase, grad_input=d_erase)
        d_add.copy_(d_added)
        head = cell.address_backward(d_weights.add_(at), turn.write, scalars)
        if not turn.side_by_side:
            torch.addcmul(cell.over_rows(head.dots, turn.rows.memory), head.key_pull, key, out=d_key)
        return head

    def backward(self, saved: SavedActivations, weights: Weights, n: int, grad_in: GradIn) -> GradOut:
        turn, width, heads = saved.turns[n], saved.shape.width, []
        controllers = ControlBackward(saved, weights, n, grad_in)
        for c in reversed(range(saved.shape.stages)):
            memory, raw = turn.rows.memory[:, c], grad_in.d_raws[:, c, n]
            d_weights = cell.along_rows(grad_in.read[:, c], memory).add_(grad_in.read_at[:, c])
            head = cell.address_backward(d_weights, turn.read[c], raw[..., width:])
            key = saved.read_raw[:, c, n, :, :width]
            torch.addcmul(cell.over_rows(head.dots, memory), head.key_pull, key, out=raw[..., :width])
            heads.append(head)
            controllers.stage(c, raw)
        stacked = HeadGradients(*(torch.stack(parts[::-1], 1) for parts in zip(*heads, strict=True)))
        gather(saved, n, grad_in.read, stacked, grad_in.writing)
        return GradOut(stacked.previous, controllers.cell, controllers.first)


def _parts(raw: Tensor, width: int) -> tuple[Tensor, ...]:
    """Split a write head's raw outputs, or their gradients, into scalars, erase, add and key."""
    return raw.tensor_split([SCALARS, SCALARS + width, SCALARS + 2 * width], -1)


def control(saved: SavedActivations, weights: Weights, n: int, c: int) -> Tensor:
    """Compute r^{c-1}(n) -> gates -> hidden state -> raw outputs of the read head [K, B, M + 6], of stage ``c``."""
    width, gates, hidden = saved.shape.width, saved.gates[:, c, n], saved.hidden(n)[:, c]
    add_product(gates, saved.stage_input(c, n), weights.from_previous[:, c].mT)
    cell.lstm(gates, saved.cells[:, c, n], saved.cells[:, c, n + 1], saved.squashed[:, c, n], hidden)
    given, heads = saved.states[:, c, n + 1, :, width:], weights.heads[:, c, :, : width + SCALARS]  # [h; 1]
    return product(given, heads, out=saved.read_raw[:, c, n])


class ControlBackward:
    """Backward of ``control``, from the last stage to the first. Results: cell [K, C, B, H] and first [K, B, M]."""

    def __init__(self, saved: SavedActivations, weights: Weights, n: int, grad_in: GradIn):
        hidden, gates = saved.shape.hidden, saved.gates[:, :, n]
        self.weights, self.grad_in, self.forget = weights, grad_in, gates[..., hidden : 2 * hidden]
        self.reading = weights.heads[:, :, :-1, : saved.shape.width + SCALARS].mT
        self.to_cell = cell.lstm_slopes(gates, saved.cells[:, :, n], saved.squashed[:, :, n], grad_in.d_gates)
        self.cell = torch.empty_like(grad_in.cell)

    def stage(self, c: int, d_raw: Tensor) -> None:
        """Process stage ``c``: from the gradient of its read head's raw outputs, add that of r^{c-1}(n) in place."""
        given, from_previous = self.grad_in, self.weights.from_previous[:, c]
        d_gates, d_hidden = given.d_gates[:, c], add_product(given.hidden[:, c], d_raw, self.reading[:, c])
        self.cell[:, c] = cell.lstm_backward(d_hidden, given.cell[:, c], self.forget[:, c], self.to_cell[:, c], d_gates)
        if c:
            add_product(given.read[:, c - 1], d_gates, from_previous)
        else:
            self.first = product(d_gates, from_previous)


def gather(
    saved: SavedActivations, n: int, d_read: Tensor, reading: HeadGradients, writing: HeadGradients | None
) -> None:
    """Replace ``saved.d_memory``, the gradient of the memories after turn n, by that of the memories before it.

    It is the gradient through the write, plus a product of rank three: with the read vector's gradient and both keys.
    """
    turn, width, total = saved.turns[n], saved.shape.width, saved.d_memory
    left, right = [turn.read_weights, reading.dots], [d_read, saved.read_raw[:, :, n, :, :width]]
    pull = reading.pull
    if writing is not None:
        _, erase, _, key = _parts(turn.write_raw, width)
        left.append(writing.dots)
        right.append(key)
        pull = pull + writing.pull
        cell.old_memory_gradient(total, turn.write.weights, erase, saved.scratch)
    product = torch.stack(left, -1).flatten(0, 2), torch.stack(right, -2).flatten(0, 2)
    total.flatten(0, 2).baddbmm_(*product, beta=int(writing is not None))
    total.addcmul_((pull * cell.norm_slopes(turn.rows.norms)).unsqueeze(-1), turn.rows.memory)
