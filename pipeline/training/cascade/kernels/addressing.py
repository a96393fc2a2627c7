"""Addressing of a head, forward and backward, as functions of Triton kernels on vectors over the slots of one session.

The formulas are those of ``cell.py``. SLOTS is N rounded up to a power of two; ``valid`` is the mask of valid slots.
"""

from __future__ import annotations

import triton
import triton.language as tl

SCALARS = tl.constexpr(6)  # of one head, ``parameters.SCALARS``
FLOOR = tl.constexpr(1e-8)  # NORM_FLOOR of the reference
LINEAR = tl.constexpr(20.0)  # of ``cell.SOFTPLUS``
TINY = tl.constexpr(2.0**-126)  # the smallest normal float32; Triton treats smaller literals as float64


@triton.jit
def sigmoid(x):
    return 1 / (1 + tl.exp(-x))


@triton.jit
def tanh(x):
    return 2 / (1 + tl.exp(-2 * x)) - 1


@triton.jit
def _softplus(x):
    return tl.where(x > LINEAR, x, tl.log(1 + tl.exp(tl.minimum(x, LINEAR))))


@triton.jit
def _slope(x):
    """Return the derivative of softplus."""
    return tl.where(x > LINEAR, 1.0, sigmoid(x))


@triton.jit
def _softmax(x, inside):
    e = tl.where(inside, tl.exp(x - tl.max(tl.where(inside, x, -float("inf")), 0)), 0.0)
    return e / tl.sum(e, 0)


@triton.jit
def _shifts(s0, s1, s2, N: tl.constexpr, SLOTS: tl.constexpr):
    """Return the circulant matrix [SLOTS, SLOTS] that maps weights to shifted weights."""
    i, j = tl.arange(0, SLOTS)[:, None], tl.arange(0, SLOTS)[None, :]
    by = (i - j + N) % N
    inside = (i < N) & (j < N)
    # With one or two slots, several shifts add up in one element.
    matrix = tl.where(by == 1 % N, s0, 0.0) + tl.where(by == 0, s1, 0.0) + tl.where(by == (N - 1) % N, s2, 0.0)
    return tl.where(inside, matrix, 0.0)


@triton.jit
def load(at, mask):
    """Load the elements in ``mask``, and zero for the others."""
    return tl.load(at, mask=mask, other=0.0)


@triton.jit
def load_scalars(at):
    """Load the six raw scalars of a head: strength, gate, three shifts, sharpening."""
    return tl.load(at), tl.load(at + 1), tl.load(at + 2), tl.load(at + 3), tl.load(at + 4), tl.load(at + 5)


@triton.jit
def store_scalars(at, r0, r1, r2, r3, r4, r5):
    tl.store(at, r0)
    tl.store(at + 1, r1)
    tl.store(at + 2, r2)
    tl.store(at + 3, r3)
    tl.store(at + 4, r4)
    tl.store(at + 5, r5)


@triton.jit
def address(r0, r1, r2, r3, r4, r5, cosine, previous, valid, N: tl.constexpr, SLOTS: tl.constexpr):
    """Compute the addressing weights from raw scalars and the cosines of key and rows.

    Returns the weights, content weights, interpolated and shifted weights, the logarithm of the latter, and the three
    shifts. For a memory of equal rows, pass zero cosines.
    """
    content = _softmax(_softplus(r0) * cosine, valid)
    mixed = previous + sigmoid(r1) * (content - previous)
    top = tl.maximum(tl.maximum(r2, r3), r4)
    e0, e1, e2 = tl.exp(r2 - top), tl.exp(r3 - top), tl.exp(r4 - top)
    whole = e0 + e1 + e2
    s0, s1, s2 = e0 / whole, e1 / whole, e2 / whole
    shifted = tl.sum(_shifts(s0, s1, s2, N, SLOTS) * mixed[None, :], 1)
    log = tl.where(valid, tl.log(tl.maximum(shifted, TINY)), 0.0)
    return _softmax((1 + _softplus(r5)) * log, valid), content, mixed, shifted, log, s0, s1, s2


@triton.jit
def address_backward(d_weights, r0, r1, r2, r3, r4, r5, cosine, previous, valid, N: tl.constexpr, SLOTS: tl.constexpr):
    """Return the gradients of the cosines, of the previous weights and of the six raw scalars."""
    weights, content, mixed, shifted, log, s0, s1, s2 = address(
        r0, r1, r2, r3, r4, r5, cosine, previous, valid, N, SLOTS
    )
    d_logits = weights * (d_weights - tl.sum(d_weights * weights, 0))
    d_sharpening = tl.sum(d_logits * log, 0)
    d_shifted = tl.where(valid & (shifted >= TINY), d_logits * (1 + _softplus(r5)) / tl.maximum(shifted, TINY), 0.0)
    d_s0 = tl.sum(d_shifted * tl.sum(_shifts(1.0, 0.0, 0.0, N, SLOTS) * mixed[None, :], 1), 0)
    d_s1 = tl.sum(d_shifted * mixed, 0)
    d_s2 = tl.sum(d_shifted * tl.sum(_shifts(0.0, 0.0, 1.0, N, SLOTS) * mixed[None, :], 1), 0)
    d_mixed = tl.sum(_shifts(s0, s1, s2, N, SLOTS) * d_shifted[:, None], 0)
    gate = sigmoid(r1)
    d_gate = tl.sum(d_mixed * (content - previous), 0)
    d_content = d_mixed * gate
    d_scaled = content * (d_content - tl.sum(d_content * content, 0))
    mean = s0 * d_s0 + s1 * d_s1 + s2 * d_s2
    return (
        d_scaled * _softplus(r0),
        d_mixed * (1 - gate),
        tl.sum(d_scaled * cosine, 0) * _slope(r0),
        d_gate * gate * (1 - gate),
        s0 * (d_s0 - mean),
        s1 * (d_s1 - mean),
        s2 * (d_s2 - mean),
        d_sharpening * _slope(r5),
    )


@triton.jit
def cosine_backward(d_cosine, cosine, key_norm, norm):
    """Return the gradients of key and rows through their cosines, as ``HeadGradients``: dots, pull and key_pull."""
    pull = d_cosine * cosine
    key_pull = tl.where(key_norm <= FLOOR, 0.0, -tl.sum(pull, 0) / (key_norm * key_norm))
    return d_cosine / (key_norm * norm), pull, key_pull
