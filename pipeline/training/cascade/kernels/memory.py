"""Triton kernels of the memories in a turn, one program per session and stage: write, its backward, memory gradient.

``numba_loops.py`` does the same on a CPU; ``cell.py`` has the formulas. Memories of width M are processed COLS columns
at a time. ``raws``: [K, C, B, length], the write head's scalars, the erase vector (after its sigmoid once written),
add, key. ALIKE: all rows of a memory are equal and stored as one, [K, C, M]; there is no content addressing, no key.
"""

from __future__ import annotations

import triton
import triton.language as tl

from pipeline.training.cascade.kernels.addressing import (
    FLOOR,
    SCALARS,
    address,
    address_backward,
    cosine_backward,
    load,
    load_scalars,
    sigmoid,
    store_scalars,
)


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
