"""One Neural Turing Machine memory as pure functions of its state (Graves et al. 2014; paper section 3.1).

Shapes: B sessions, N slots of width M, H heads that address the same memory (two: ``READ`` and ``WRITE``), K hidden
units. Weights over slots are non-negative and sum to one.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

READ, WRITE = 0, 1
HEADS = 2
SHIFTS = 3  # by one slot forward, none, by one slot back
NORM_FLOOR = 1e-8  # far below 2.8e-5, the row norm of a constant memory of 1e-6 at M = 768


class MemoryState(NamedTuple):
    """State of one stage between turns.

    memory: [B, N, M]; read: [B, M], the last read vector; hidden, cell: [B, K] of the LSTM controller;
    weights: [B, H, N], the last addressing weights of each head.
    """

    memory: Tensor
    read: Tensor
    hidden: Tensor
    cell: Tensor
    weights: Tensor


class Addressing(NamedTuple):
    """Parameters of the heads at one turn: key [B, H, M], shift [B, H, 3], which sums to one, and the others [B, H, 1].

    strength >= 0; gate in (0, 1); sharpening >= 1.
    """

    key: Tensor
    strength: Tensor
    gate: Tensor
    shift: Tensor
    sharpening: Tensor


class Heads(NamedTuple):
    """Both heads' parameters at one turn. erase: [B, M] in (0, 1); add: [B, M]."""

    addressing: Addressing
    erase: Tensor
    add: Tensor


def head_sizes(width: int) -> tuple[int, ...]:
    """Sizes of a head's raw addressing outputs, in the order of ``Addressing``."""
    return (width, 1, 1, SHIFTS, 1)


def heads(raw: Tensor, width: int) -> Heads:
    """Split the raw outputs [B, H (M + 6) + 2 M] of the heads' linear layer and map them to their valid ranges."""
    addressing, erase, add = raw.split([HEADS * sum(head_sizes(width)), width, width], dim=-1)
    per_head = addressing.unflatten(-1, (HEADS, -1))
    key, strength, gate, shift, sharpening = per_head.split(head_sizes(width), dim=-1)
    return Heads(
        Addressing(
            key,
            torch.nn.functional.softplus(strength),
            torch.sigmoid(gate),
            torch.softmax(shift, dim=-1),
            1 + torch.nn.functional.softplus(sharpening),
        ),
        torch.sigmoid(erase),
        add,
    )


def content(memory: Tensor, key: Tensor, strength: Tensor) -> Tensor:
    """Content addressing, softmax over slots of strength * cos(key, row): [B, N, M], [B, H, M], [B, H, 1] -> [B, H, N].

    A row or key of norm zero has similarity zero and a finite gradient.
    """
    dots = key @ memory.transpose(1, 2)
    key_norm = torch.linalg.vector_norm(key, dim=-1).clamp_min(NORM_FLOOR)  # [B, H]
    row_norm = torch.linalg.vector_norm(memory, dim=-1).clamp_min(NORM_FLOOR)  # [B, N]
    # Two divisions, because the product of two small norms could underflow float32.
    return torch.softmax(strength * (dots / key_norm.unsqueeze(2) / row_norm.unsqueeze(1)), dim=-1)


def interpolate(content_weights: Tensor, previous: Tensor, gate: Tensor) -> Tensor:
    """Return gate * content + (1 - gate) * previous: all [B, H, N], gate [B, H, 1]."""
    return gate * content_weights + (1 - gate) * previous


def shift_weights(weights: Tensor, shift: Tensor) -> Tensor:
    """Circular convolution of weights [B, H, N] with shift [B, H, 3].

    shifted[i] = shift[0] * weights[i - 1] + shift[1] * weights[i] + shift[2] * weights[i + 1], indices modulo N.
    """
    forward, stay, back = shift.split(1, dim=-1)
    return forward * weights.roll(1, -1) + stay * weights + back * weights.roll(-1, -1)


def sharpen(weights: Tensor, sharpening: Tensor) -> Tensor:
    """Return weights ** sharpening, normalized over slots: [B, H, N], [B, H, 1] -> [B, H, N].

    Computed as a softmax of logarithms, so that large exponents and zero weights neither overflow nor underflow.
    """
    floor = torch.finfo(weights.dtype).tiny
    return torch.softmax(sharpening * weights.clamp_min(floor).log(), dim=-1)


def address(memory: Tensor, previous: Tensor, parameters: Addressing) -> Tensor:
    """Return the new addressing weights of the heads: memory [B, N, M], previous weights [B, H, N] -> [B, H, N]."""
    found = content(memory, parameters.key, parameters.strength)
    moved = shift_weights(interpolate(found, previous, parameters.gate), parameters.shift)
    return sharpen(moved, parameters.sharpening)


def read_memory(memory: Tensor, weights: Tensor) -> Tensor:
    """Return the weighted sum of the rows: [B, N, M], [B, N] -> [B, M]."""
    return (weights.unsqueeze(1) @ memory).squeeze(1)


def write_memory(memory: Tensor, weights: Tensor, erase: Tensor, add: Tensor) -> Tensor:
    """Erase, then add: [B, N, M], [B, N], [B, M], [B, M] -> [B, N, M]."""
    at = weights.unsqueeze(2)
    return memory * (1 - at * erase.unsqueeze(1)) + at * add.unsqueeze(1)


def access(state: MemoryState, hidden: Tensor, cell: Tensor, parameters: Heads) -> MemoryState:
    """Address, read and write with the controller's new (hidden, cell) [B, K]; return the stage's new state.

    Both heads address the memory before this turn's write, and the read vector is read before it too.
    """
    weights = address(state.memory, state.weights, parameters.addressing)
    read = read_memory(state.memory, weights[:, READ])
    memory = write_memory(state.memory, weights[:, WRITE], parameters.erase, parameters.add)
    return MemoryState(memory, read, hidden, cell, weights)
