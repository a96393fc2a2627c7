"""One controller and one head as explicit pairs of forward and backward, without autograd.

L is any leading dimensions, B sessions. Every backward takes the gradient of a result and the activations saved by its
forward, and returns the gradients of the arguments. The reference is ``models/_ntm.py``.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import softplus

from pipeline.training.models._ntm import NORM_FLOOR

# One operation each, written to grad_input: gradient [..] and output (softplus: input) -> gradient of the input.
_of_sigmoid = torch.ops.aten.sigmoid_backward.grad_input
_of_tanh = torch.ops.aten.tanh_backward.grad_input
_of_softplus = torch.ops.aten.softplus_backward.grad_input
NONE = torch.empty(0)
SOFTPLUS = (1.0, 20.0)  # beta, and the threshold above which softplus(x) = x: torch's defaults


def of_softmax(gradient: Tensor, output: Tensor) -> Tensor:
    """Return the gradient of the input of a softmax over the last dimension."""
    return torch._softmax_backward_data(gradient, output, -1, output.dtype)


def lstm(gates: Tensor, cell: Tensor, new: Tensor, squashed: Tensor, hidden: Tensor) -> None:
    """Apply the LSTM nonlinearities to gates [L, B, 4 H] (i, f, g, o) in place, given the old ``cell`` [L, B, H].

    Writes the new cell to ``new``, its tanh to ``squashed`` and the hidden state to ``hidden``, [L, B, H] each.
    """
    size = cell.shape[-1]
    gates[..., : 2 * size].sigmoid_()
    gates[..., 2 * size : 3 * size].tanh_()
    gates[..., 3 * size :].sigmoid_()
    i, f, g, o = gates.split(size, -1)
    torch.mul(f, cell, out=new).addcmul_(i, g)
    torch.tanh(new, out=squashed)
    torch.mul(o, squashed, out=hidden)


def lstm_slopes(gates: Tensor, cell: Tensor, squashed: Tensor, out: Tensor) -> Tensor:
    """Compute the derivatives of the LSTM, which do not depend on a gradient.

    gates: after their nonlinearities; cell: the old cell; squashed: the tanh of the new cell. Writes to out [L, B, 4 H]
    the derivatives of the new cell with respect to the raw i, f, g, and of the hidden state with respect to the raw o.
    Returns the derivative of the hidden state with respect to the new cell.
    """
    size = cell.shape[-1]
    (i, f, g, o), (to_i, to_f, to_g, to_o) = gates.split(size, -1), out.split(size, -1)
    _of_sigmoid(g, i, grad_input=to_i)
    _of_sigmoid(cell, f, grad_input=to_f)
    _of_tanh(i, g, grad_input=to_g)
    _of_sigmoid(squashed, o, grad_input=to_o)
    return torch.ops.aten.tanh_backward(o, squashed)


def lstm_backward(d_hidden: Tensor, d_cell: Tensor, forget: Tensor, to_cell: Tensor, slopes: Tensor) -> Tensor:
    """Backward of ``lstm``, given results of ``lstm_slopes``; return the gradient of the old cell [L, B, H].

    Replaces ``slopes`` by the gradient of the raw gates. forget: [L, B, H], the gate f.
    """
    size = forget.shape[-1]
    d_cell = torch.addcmul(d_cell, d_hidden, to_cell)
    slopes[..., : 3 * size].unflatten(-1, (3, size)).mul_(d_cell.unsqueeze(-2))
    slopes[..., 3 * size :].mul_(d_hidden)
    return d_cell * forget


def along_rows(vector: Tensor, memory: Tensor) -> Tensor:
    """Return the dot product of a vector with each row: [L, B, M], [L, B, N, M] -> [L, B, N]."""
    return (vector.unsqueeze(-2) @ memory.mT).squeeze(-2)  # faster than memory @ vector on a CPU


def over_rows(weights: Tensor, memory: Tensor) -> Tensor:
    """Return the weighted sum of the rows: [L, B, N], [L, B, N, M] -> [L, B, M]."""
    return (weights.unsqueeze(-2) @ memory).squeeze(-2)


class MemoryRows(NamedTuple):
    """The rows of a memory [L, B, N, M], and their norms [L, B, N], at least ``NORM_FLOOR``."""

    memory: Tensor
    norms: Tensor

    @classmethod
    def of(cls, memory: Tensor) -> MemoryRows:
        return cls(memory, torch.linalg.vector_norm(memory, dim=-1).clamp_min_(NORM_FLOOR))


def norm_slopes(norms: Tensor) -> Tensor:
    """Return -1 / norm^2, the factor of a cosine's gradient through a vector's norm; 0 at the floor."""
    return norms.square().reciprocal_().neg_().masked_fill_(norms <= NORM_FLOOR, 0)


class ContentScores(NamedTuple):
    """Saved values of content addressing: cosines and products of both norms [L, B, N], the key's norm [L, B, 1]."""

    cosine: Tensor
    scale: Tensor
    key_norm: Tensor


class HeadWeights(NamedTuple):
    """Addressing weights of a head and the saved values of their computation, [L, B, N] except for the following.

    taps: [L, B, N, 3], the interpolated weights that each slot's shifted weight is computed from. raw: [L, B, 6], the
    scalars before their nonlinearities; strength, gate, sharpening: [L, B, 1]; shift: [L, B, 3].
    """

    weights: Tensor
    previous: Tensor
    content: Tensor
    taps: Tensor
    shifted: Tensor
    log: Tensor
    raw: Tensor
    strength: Tensor
    gate: Tensor
    shift: Tensor
    sharpening: Tensor
    found: ContentScores | None  # None if all rows are equal: content weights are then 1 / N regardless of the key


def taps(weights: Tensor) -> Tensor:
    """Return for each slot the previous slot, itself and the next slot, circularly: [.., N] -> [.., N, 3]."""
    return torch.cat([weights[..., -1:], weights, weights[..., :1]], -1).unfold(-1, 3, 1)


def address(rows: MemoryRows | None, key: Tensor | None, raw: Tensor, previous: Tensor) -> HeadWeights:
    """Compute a head's weights from key [L, B, M], raw scalars [L, B, 6]; ``rows`` None: all equal, no key needed."""
    strength, sharpening = softplus(raw[..., :1]), softplus(raw[..., 5:]) + 1
    gate, shift = raw[..., 1:2].sigmoid(), raw[..., 2:5].softmax(-1)
    if rows is None or key is None:
        content, found = torch.full_like(previous, 1 / previous.shape[-1]), None
    else:
        key_norm = torch.linalg.vector_norm(key, dim=-1, keepdim=True).clamp_min_(NORM_FLOOR)
        scale = key_norm * rows.norms
        cosine = along_rows(key, rows.memory) / scale
        content = (strength * cosine).softmax(-1)
        found = ContentScores(cosine, scale, key_norm)
    around = taps(torch.lerp(previous, content, gate))
    shifted = (around * shift.unsqueeze(-2)).sum(-1)
    log = shifted.clamp_min(torch.finfo(shifted.dtype).tiny).log_()
    weights = (sharpening * log).softmax(-1)
    return HeadWeights(weights, previous, content, around, shifted, log, raw, strength, gate, shift, sharpening, found)


class HeadGradients(NamedTuple):
    """Gradients of a head's addressing. previous: [L, B, N], of the previous weights.

    With content addressing also dots and pull: [L, B, N], and key_pull: [L, B, 1]; else they are empty. The gradient of
    row M_i is dots_i key + pull_i norm_slopes_i M_i, that of the key is sum_i dots_i M_i + key_pull key.
    """

    previous: Tensor
    dots: Tensor = NONE
    pull: Tensor = NONE
    key_pull: Tensor = NONE


def address_backward(d_weights: Tensor, head: HeadWeights, d_raw: Tensor) -> HeadGradients:
    """Return the gradients of ``address``, given that of its weights [L, B, N]; write the raw scalars' to ``d_raw``."""
    d_logits = of_softmax(d_weights, head.weights)
    d_sharpening = (d_logits * head.log).sum(-1, keepdim=True)
    tiny = torch.finfo(d_logits.dtype).tiny
    d_shifted = d_logits.mul_(head.sharpening).div_(head.shifted).masked_fill_(head.shifted < tiny, 0)
    d_shift = (head.taps * d_shifted.unsqueeze(-1)).sum(-2)
    d_mixed = (taps(d_shifted) * head.shift.flip(-1).unsqueeze(-2)).sum(-1)
    d_gate = (d_mixed * (head.content - head.previous)).sum(-1, keepdim=True)
    d_content = d_mixed * head.gate
    _of_sigmoid(d_gate, head.gate, grad_input=d_raw[..., 1:2])
    d_raw[..., 2:5] = of_softmax(d_shift, head.shift)
    _of_softplus(d_sharpening, head.raw[..., 5:], *SOFTPLUS, grad_input=d_raw[..., 5:])
    d_previous, found = d_mixed.sub_(d_content), head.found
    if found is None:
        d_raw[..., :1] = 0
        return HeadGradients(d_previous)
    d_scaled = of_softmax(d_content, head.content)
    d_strength = (d_scaled * found.cosine).sum(-1, keepdim=True)
    _of_softplus(d_strength, head.raw[..., :1], *SOFTPLUS, grad_input=d_raw[..., :1])
    d_cosine = d_scaled.mul_(head.strength)
    pull = d_cosine * found.cosine
    key_pull = pull.sum(-1, keepdim=True).mul_(norm_slopes(found.key_norm))
    return HeadGradients(d_previous, d_cosine.div_(found.scale), pull, key_pull)


def write(memory: Tensor, weights: Tensor, erase: Tensor, add: Tensor, out: Tensor) -> Tensor:
    """Erase, add: [L, B, N, M] (equal rows: [.., 1, M]), [L, B, N], [L, B, M], [L, B, M] -> ``out`` [L, B, N, M]."""
    place = out if memory.shape == out.shape else None
    change = torch.addcmul(add.unsqueeze(-2), memory, erase.unsqueeze(-2), value=-1, out=place)
    return torch.addcmul(memory, weights.unsqueeze(-1), change, out=out)


def write_backward(
    d_new: Tensor, memory: Tensor, weights: Tensor, erase: Tensor, add: Tensor, scratch: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of weights [L, B, N], erase and add [L, B, M], given that of the new memory [L, B, N, M].

    ``scratch``: a buffer like ``d_new``, not used if the memory is given as one row.
    """
    d_add = over_rows(weights, d_new)
    if memory.shape[-2] == 1:
        row = memory.squeeze(-2)
        change = torch.addcmul(add, row, erase, value=-1)
        return along_rows(change, d_new), (row * d_add).neg_(), d_add
    overlap = torch.mul(d_new, memory, out=scratch)
    d_weights = along_rows(add, d_new) - along_rows(erase, overlap)
    return d_weights, over_rows(weights, overlap).neg_(), d_add


def old_memory_gradient(d_new: Tensor, weights: Tensor, erase: Tensor, scratch: Tensor) -> Tensor:
    """Replace the gradient of the new memory [L, B, N, M] by that of the old memory through ``write``, in place."""
    return d_new.addcmul_(torch.mul(d_new, erase.unsqueeze(-2), out=scratch), weights.unsqueeze(-1), value=-1)
