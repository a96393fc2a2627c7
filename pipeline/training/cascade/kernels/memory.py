"""Triton kernels of the memories in a turn, one program per session and stage: write, its backward, memory gradient.

``numba_loops.py`` does the same on a CPU; ``cell.py`` has the formulas. Memories of width M are processed COLS columns
at a time. ``raws``: [K, C, B, length], the write head's scalars, the erase vector (after its sigmoid once written),
add, key. ALIKE: all rows of a memory are equal and stored as one, [K, C, M]; there is no content addressing, no key.

The functions of a head's addressing, which ``stages.py`` uses too, work on vectors over the slots of one session. SLOTS
is N rounded up to a power of two; ``valid`` is the mask of valid slots.
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


@triton.jit
def _rows(memory, row, stage, slot, col, inside, M: tl.constexpr, N: tl.constexpr, ALIKE: tl.constexpr):
    """Load columns of a session's memory: [SLOTS, COLS], or [1, COLS] if ALIKE."""
    if ALIKE:
        found = load(memory + stage * M + col, col < M)[None, :]
    else:
        found = load(memory + row * N * M + slot[:, None] * M + col[None, :], inside)
    return found


@triton.jit
def write_memory(
    memory,
    norms,
    raws,
    length,
    previous,  # [K, C, B, N, M]; [K, C, B, N]; raws; [K, C, B, N]
    new,
    new_norms,
    weights,
    cosines,  # out: [K, C, B, N, M], [K, C, B, N] each
    B,
    M: tl.constexpr,
    N: tl.constexpr,
    SLOTS: tl.constexpr,
    COLS: tl.constexpr,
    ALIKE: tl.constexpr,
):
    """Address with the write head, erase, then add. SLOTS: N rounded up to a power of two."""
    row = tl.program_id(0)
    stage = row // B
    raw = raws + row * length
    slot = tl.arange(0, SLOTS)
    valid = slot < N
    at = row * N + slot
    cosine = tl.zeros([SLOTS], dtype=weights.dtype.element_ty)
    if not ALIKE:
        square = tl.sum(tl.zeros([SLOTS], dtype=weights.dtype.element_ty), 0)
        for start in range(0, M, COLS):
            col = start + tl.arange(0, COLS)
            part = _rows(memory, row, stage, slot, col, valid[:, None] & (col < M)[None, :], M, N, ALIKE)
            key = load(raw + SCALARS + 2 * M + col, col < M)
            cosine += tl.sum(part * key[None, :], 1)
            square += tl.sum(key * key, 0)
        norm = tl.load(norms + at, mask=valid, other=1.0)
        cosine = cosine / (tl.maximum(tl.sqrt(square), FLOOR) * norm)
    before = load(previous + at, valid)
    r0, r1, r2, r3, r4, r5 = load_scalars(raw)
    weight, _, _, _, _, _, _, _ = address(r0, r1, r2, r3, r4, r5, cosine, before, valid, N, SLOTS)
    tl.store(weights + at, weight, mask=valid)
    tl.store(cosines + at, cosine, mask=valid)
    total = tl.zeros([SLOTS], dtype=weights.dtype.element_ty)
    for start in range(0, M, COLS):
        col = start + tl.arange(0, COLS)
        inside = valid[:, None] & (col < M)[None, :]
        erase = sigmoid(load(raw + SCALARS + col, col < M))
        add = load(raw + SCALARS + M + col, col < M)
        part = _rows(memory, row, stage, slot, col, inside, M, N, ALIKE)
        after = part + weight[:, None] * (add[None, :] - erase[None, :] * part)
        tl.store(raw + SCALARS + col, erase, mask=col < M)
        tl.store(new + row * N * M + slot[:, None] * M + col[None, :], after, mask=inside)
        total += tl.sum(tl.where(inside, after * after, 0.0), 1)
    tl.store(new_norms + at, tl.maximum(tl.sqrt(total), FLOOR), mask=valid)


@triton.jit
def write_memory_backward(
    memory,
    norms,
    raws,
    length,
    previous,
    cosines,
    d_new,  # as after ``write_memory``; d_new [K, C, B, N, M]
    d_weights,  # [K, C, B, N]: gradients from outside the write
    d_raws,
    d_raws_c,
    d_raws_b,  # out, with strides of C and B
    d_previous,
    dots,
    pulls,  # out, ``HeadGradients``: [K, C, B, N]
    B,
    M: tl.constexpr,
    N: tl.constexpr,
    SLOTS: tl.constexpr,
    COLS: tl.constexpr,
    ALIKE: tl.constexpr,
):
    """Compute the gradients of all inputs of ``write_memory`` but the memory, given that of the new memory."""
    row = tl.program_id(0)
    stage = row // B
    raw = raws + row * length
    d_raw = d_raws + stage * d_raws_c + (row % B) * d_raws_b
    slot = tl.arange(0, SLOTS)
    valid = slot < N
    at = row * N + slot
    cosine = load(cosines + at, valid)
    before = load(previous + at, valid)
    r0, r1, r2, r3, r4, r5 = load_scalars(raw)
    weight, _, _, _, _, _, _, _ = address(r0, r1, r2, r3, r4, r5, cosine, before, valid, N, SLOTS)
    d_weight = load(d_weights + at, valid)
    square = tl.sum(tl.zeros([SLOTS], dtype=cosines.dtype.element_ty), 0)
    for start in range(0, M, COLS):
        col = start + tl.arange(0, COLS)
        inside = valid[:, None] & (col < M)[None, :]
        erase = load(raw + SCALARS + col, col < M)
        add = load(raw + SCALARS + M + col, col < M)
        part = _rows(memory, row, stage, slot, col, inside, M, N, ALIKE)
        gradient = load(d_new + row * N * M + slot[:, None] * M + col[None, :], inside)
        d_weight += tl.sum(gradient * (add[None, :] - erase[None, :] * part), 1)
        pushed = gradient * weight[:, None]
        d_erase = -tl.sum(pushed * part, 0) * erase * (1 - erase)
        tl.store(d_raw + SCALARS + col, d_erase, mask=col < M)
        tl.store(d_raw + SCALARS + M + col, tl.sum(pushed, 0), mask=col < M)
        if not ALIKE:
            key = load(raw + SCALARS + 2 * M + col, col < M)
            square += tl.sum(key * key, 0)
    d_cosine, d_before, d0, d1, d2, d3, d4, d5 = address_backward(
        d_weight, r0, r1, r2, r3, r4, r5, cosine, before, valid, N, SLOTS
    )
    store_scalars(d_raw, d0, d1, d2, d3, d4, d5)
    tl.store(d_previous + at, d_before, mask=valid)
    if not ALIKE:
        key_norm = tl.maximum(tl.sqrt(square), FLOOR)
        norm = tl.load(norms + at, mask=valid, other=1.0)
        dot, pull, key_pull = cosine_backward(d_cosine, cosine, key_norm, norm)
        tl.store(dots + at, dot, mask=valid)
        tl.store(pulls + at, pull, mask=valid)
        for start in range(0, M, COLS):
            col = start + tl.arange(0, COLS)
            part = _rows(memory, row, stage, slot, col, valid[:, None] & (col < M)[None, :], M, N, ALIKE)
            key = load(raw + SCALARS + 2 * M + col, col < M)
            tl.store(d_raw + SCALARS + 2 * M + col, key_pull * key + tl.sum(part * dot[:, None], 0), mask=col < M)


@triton.jit
def gather_memory(
    memory,
    norms,  # [K, C, B, N, M], [K, C, B, N], as the turn read them
    d_memory,  # [K, C, B, N, M]: in: of the memories after the turn; out: of the memories before it
    weights,
    dots,
    pulls,  # [K, C, B, N], of the read heads
    d_reads,
    d_reads_b,
    keys,
    keys_c,
    keys_b,  # [K, C, B, M] each, with strides
    raws,
    length,
    write_weights,
    write_dots,
    write_pulls,  # of the write heads; only read if the turn WROTE
    B,
    M: tl.constexpr,
    N: tl.constexpr,
    SLOTS: tl.constexpr,
    COLS: tl.constexpr,
    WROTE: tl.constexpr,
):
    """Compute the gradient through the write, plus a product of rank three: read vector's gradient and both keys."""
    row = tl.program_id(0)
    raw = raws + row * length
    d_read, key_at = d_reads + row * d_reads_b, keys + (row // B) * keys_c + (row % B) * keys_b
    slot = tl.arange(0, SLOTS)
    valid = slot < N
    at = row * N + slot
    weight = load(weights + at, valid)
    dot, pull = load(dots + at, valid), load(pulls + at, valid)
    norm = tl.load(norms + at, mask=valid, other=1.0)
    if WROTE:
        written = load(write_weights + at, valid)
        write_dot = load(write_dots + at, valid)
        pull += load(write_pulls + at, valid)
    slope = tl.where(norm <= FLOOR, 0.0, -pull / (norm * norm))
    for start in range(0, M, COLS):
        col = start + tl.arange(0, COLS)
        wide = col < M
        inside = valid[:, None] & wide[None, :]
        place = row * N * M + slot[:, None] * M + col[None, :]
        found = weight[:, None] * load(d_read + col, wide)[None, :]
        found += dot[:, None] * load(key_at + col, wide)[None, :]
        found += slope[:, None] * load(memory + place, inside)
        if WROTE:
            erase = load(raw + SCALARS + col, wide)
            kept = load(d_memory + place, inside)
            found += kept * (1 - written[:, None] * erase[None, :])
            found += write_dot[:, None] * load(raw + SCALARS + 2 * M + col, wide)[None, :]
        tl.store(d_memory + place, found, mask=inside)
