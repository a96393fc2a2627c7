"""One controller and one head as explicit pairs of forward and backward: no autograd inside.

``L`` stands for any leading dimensions, B for sessions. Every backward takes the gradient of a result and what its
forward kept, and returns the gradients of the arguments. The reference is ``models/_ntm.py``.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.training.models._ntm import NORM_FLOOR

SOFTPLUS_LINEAR = 20.0  # from here on softplus(x) is x, as in torch


def lstm(gates: Tensor, cell: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """gates [L, B, 4 H] before, and in place after, their nonlinearities (i, f, g, o); cell [L, B, H].

    Returns hidden, the new cell and its tanh, [L, B, H] each.
    """
    size = cell.shape[-1]
    gates[..., : 2 * size].sigmoid_()
    gates[..., 2 * size : 3 * size].tanh_()
    gates[..., 3 * size :].sigmoid_()
    i, f, g, o = gates.split(size, -1)
    new = torch.addcmul(f * cell, i, g)
    squashed = new.tanh()
    return o * squashed, new, squashed


def lstm_backward(
    d_hidden: Tensor, d_cell: Tensor, gates: Tensor, cell: Tensor, squashed: Tensor, out: Tensor
) -> Tensor:
    """Gradient of the raw gates into ``out`` [L, B, 4 H]; returns that of the old ``cell`` [L, B, H].

    ``gates`` are those after their nonlinearities, ``squashed`` the tanh of the new cell.
    """
    size = cell.shape[-1]
    i, f, g, o = gates.split(size, -1)
    d_cell = d_cell + d_hidden * o * (1 - squashed * squashed)
    torch.mul(d_cell * g, i * (1 - i), out=out[..., :size])
    torch.mul(d_cell * cell, f * (1 - f), out=out[..., size : 2 * size])
    torch.mul(d_cell * i, 1 - g * g, out=out[..., 2 * size : 3 * size])
    torch.mul(d_hidden * squashed, o * (1 - o), out=out[..., 3 * size :])
    return d_cell * f


class Found(NamedTuple):
    """What content addressing keeps: cosines [L, B, N], norms of rows [L, B, N] and key [L, B, 1]."""

    cosine: Tensor
    row_norm: Tensor
    key_norm: Tensor
    weights: Tensor


class Stand(NamedTuple):
    """What addressing keeps: where the head stands now, and how it came there; [L, B, N] but for the scalars.

    raw: [L, B, 6], the scalars before their ranges; gate [L, B, 1], shift [L, B, 3], sharpening [L, B, 1].
    """

    weights: Tensor
    previous: Tensor
    content: Tensor
    mixed: Tensor
    shifted: Tensor
    log: Tensor
    raw: Tensor
    strength: Tensor
    gate: Tensor
    shift: Tensor
    sharpening: Tensor
    found: Found | None  # None where all rows are equal: the content weights are then 1 / N whatever the key


def row_norms(memory: Tensor) -> Tensor:
    """Norms of the rows [.., N, M] -> [.., N], unclamped."""
    return torch.linalg.vector_norm(memory, dim=-1)


def along_rows(vector: Tensor, memory: Tensor) -> Tensor:
    """Product of a vector with each row: [L, B, M], [L, B, N, M] -> [L, B, N]."""
    return (vector.unsqueeze(-2) @ memory.mT).squeeze(-2)  # faster than memory @ vector on a CPU


def over_rows(weights: Tensor, memory: Tensor) -> Tensor:
    """Weighted sum of the rows: [L, B, N], [L, B, N, M] -> [L, B, M]."""
    return (weights.unsqueeze(-2) @ memory).squeeze(-2)


def address(memory: Tensor | None, norms: Tensor | None, key: Tensor | None, raw: Tensor, previous: Tensor) -> Stand:
    """Where a head stands: memory [L, B, N, M] with its row norms, key [L, B, M], raw scalars [L, B, 6].

    ``memory`` None stands for one whose rows are all equal, which needs no key.
    """
    strength = torch.nn.functional.softplus(raw[..., :1])
    gate = raw[..., 1:2].sigmoid()
    shift = raw[..., 2:5].softmax(-1)
    sharpening = torch.nn.functional.softplus(raw[..., 5:]) + 1
    if memory is None:
        content, found = torch.full_like(previous, 1 / previous.shape[-1]), None
    else:
        key_norm = torch.linalg.vector_norm(key, dim=-1, keepdim=True)
        dots = along_rows(key, memory)
        cosine = dots / key_norm.clamp_min(NORM_FLOOR) / norms.clamp_min(NORM_FLOOR)
        content = (strength * cosine).softmax(-1)
        found = Found(cosine, norms, key_norm, content)
    mixed = torch.lerp(previous, content, gate)
    shifted = torch.addcmul(shift[..., 1:2] * mixed, shift[..., :1], mixed.roll(1, -1))
    shifted = shifted.addcmul_(shift[..., 2:], mixed.roll(-1, -1))
    log = shifted.clamp_min(torch.finfo(shifted.dtype).tiny).log()
    weights = (sharpening * log).softmax(-1)
    return Stand(
        weights, previous, content, mixed, shifted, log, raw, strength, gate, shift, sharpening, found
    )  # fmt: skip


class HeadGradients(NamedTuple):
    """raw: [L, B, 6]; previous: [L, B, N]. dots, rows: [L, B, N], with which the memory's gradient is
    dots_i * key + rows_i * M_i. key_scale [L, B, 1]: the key's gradient is sum_i dots_i M_i + key_scale * key.
    """

    raw: Tensor
    previous: Tensor
    dots: Tensor | None
    rows: Tensor | None
    key_scale: Tensor | None


def address_backward(d_weights: Tensor, stand: Stand) -> HeadGradients:
    """Gradients of a head's addressing, given that of its weights [L, B, N]."""
    weights, shift = stand.weights, stand.shift
    d_logits = weights * (d_weights - (d_weights * weights).sum(-1, keepdim=True))
    d_sharpening = (d_logits * stand.log).sum(-1, keepdim=True)
    tiny = torch.finfo(weights.dtype).tiny
    d_shifted = (d_logits * stand.sharpening / stand.shifted).masked_fill_(stand.shifted < tiny, 0)
    mixed = stand.mixed
    d_shift = torch.stack(
        [(d_shifted * mixed.roll(1, -1)).sum(-1), (d_shifted * mixed).sum(-1), (d_shifted * mixed.roll(-1, -1)).sum(-1)],
        -1,
    )
    d_mixed = (shift[..., :1] * d_shifted).roll(-1, -1) + shift[..., 1:2] * d_shifted
    d_mixed += (shift[..., 2:] * d_shifted).roll(1, -1)
    d_gate = (d_mixed * (stand.content - stand.previous)).sum(-1, keepdim=True)
    d_content = d_mixed * stand.gate
    raw, found = stand.raw, stand.found
    dots = rows = key_scale = None
    d_strength = torch.zeros_like(d_gate)
    if found is not None:
        d_scaled = stand.content * (d_content - (d_content * stand.content).sum(-1, keepdim=True))
        d_strength = (d_scaled * found.cosine).sum(-1, keepdim=True)
        d_cosine = d_scaled * stand.strength
        dots = d_cosine / found.key_norm.clamp_min(NORM_FLOOR) / found.row_norm.clamp_min(NORM_FLOOR)
        pull = d_cosine * found.cosine
        rows = _norm_gradient(-pull, found.row_norm)
        key_scale = _norm_gradient(-pull.sum(-1, keepdim=True), found.key_norm)
    d_raw = torch.cat(
        [
            d_strength * _softplus_slope(raw[..., :1]),
            d_gate * stand.gate * (1 - stand.gate),
            shift * (d_shift - (d_shift * shift).sum(-1, keepdim=True)),
            d_sharpening * _softplus_slope(raw[..., 5:]),
        ],
        -1,
    )
    return HeadGradients(d_raw, d_mixed * (1 - stand.gate), dots, rows, key_scale)


def _norm_gradient(numerator: Tensor, norm: Tensor) -> Tensor:
    """``numerator`` / norm^2 where the norm is above the floor that the forward clamps it to, else 0."""
    return (numerator / norm.clamp_min(NORM_FLOOR).square()).masked_fill_(norm < NORM_FLOOR, 0)


def _softplus_slope(raw: Tensor) -> Tensor:
    return raw.sigmoid().masked_fill_(raw > SOFTPLUS_LINEAR, 1)


def write(memory: Tensor, weights: Tensor, erase: Tensor, add: Tensor) -> Tensor:
    """Erase, then add: [L, B, N, M], [L, B, N], [L, B, M], [L, B, M] -> [L, B, N, M]."""
    change = torch.sub(add.unsqueeze(-2), memory * erase.unsqueeze(-2))
    return torch.addcmul(memory, weights.unsqueeze(-1), change)


class WriteGradients(NamedTuple):
    """weights [L, B, N], erase [L, B, M], add [L, B, M]; memory [L, B, N, M] or None where nobody asks for it."""

    weights: Tensor
    erase: Tensor
    add: Tensor
    memory: Tensor | None


def write_backward(
    d_new: Tensor, memory: Tensor, weights: Tensor, erase: Tensor, add: Tensor, wanted: bool
) -> WriteGradients:
    """Gradients of ``write``, given that of the new memory [L, B, N, M]; ``wanted``: the old memory's too."""
    overlap = d_new * memory
    d_add = over_rows(weights, d_new)
    d_erase = -over_rows(weights, overlap)
    d_weights = along_rows(add, d_new) - along_rows(erase, overlap)
    if not wanted:
        return WriteGradients(d_weights, d_erase, d_add, None)
    erased = torch.mul(d_new, erase.unsqueeze(-2), out=overlap)
    return WriteGradients(d_weights, d_erase, d_add, torch.addcmul(d_new, erased, weights.unsqueeze(-1), value=-1))
