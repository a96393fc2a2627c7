"""Triton kernels of a turn's chain of stages, one program per session: forward and backward over all C stages.

The chain has no product of size D: with P_i = M_i^{c-1} W_r and Q_i = M_i W_k (one product each per turn for all
stages), the gates of stage c add sum_i w_i P_i, where w are the read weights of stage c - 1, and the key's dot products
are Q_i h. The key's norm comes from the Gram matrix of W_k. The key's bias is the last row of W_k, and so the last
column of Q, and the last row and column of the Gram matrix. The formulas are those of ``cell.py``; tests compare both.
"""

from __future__ import annotations

import triton
import triton.language as tl

from pipeline.training.cascade.kernels.memory import (
    FLOOR,
    SCALARS,
    address,
    address_backward,
    cosine_backward,
    load,
    load_scalars,
    sigmoid,
    store_scalars,
    tanh,
)


@triton.jit
def _scalar(scalars, at, state, unit, has, H: tl.constexpr):
    own = scalars + at * (H + 1)
    return tl.sum(load(own + unit, has) * state, 0) + tl.load(own + H)


@triton.jit
def _load_gates(at, has, H: tl.constexpr):
    return load(at, has), load(at + H, has), load(at + 2 * H, has), load(at + 3 * H, has)


@triton.jit
def _store_gates(at, i, f, g, o, has, H: tl.constexpr):
    tl.store(at, i, mask=has)
    tl.store(at + H, f, mask=has)
    tl.store(at + 2 * H, g, mask=has)
    tl.store(at + 3 * H, o, mask=has)


@triton.jit
def _gram_product(gram, state, unit, has, H: tl.constexpr, UNITS: tl.constexpr, ROWS: tl.constexpr):
    """Compute W_k' W_k h without the bias.

    Processes ROWS rows of the symmetric matrix [H + 1, H + 1] at a time, because it does not fit into the registers.
    """
    found = tl.zeros([UNITS], dtype=state.dtype)
    for start in range(0, H, ROWS):
        row = start + tl.arange(0, ROWS)
        tile = load(gram + row[:, None] * (H + 1) + unit[None, :], (row < H)[:, None] & has[None, :])
        own = tl.sum(tl.where(row[:, None] == unit[None, :], state[None, :], 0.0), 1)
        found += tl.sum(tile * own[:, None], 0)
    return found


@triton.jit
def forward_turn(
    gates,  # [K, C, T, B, 4 H], at a turn: in: before, out: after their nonlinearities
    cells,  # [K, C, T + 1, B, H], at a turn: in: before the turn, out: after it
    squashed,  # [K, C, T, B, H], at a turn: out
    hidden,
    hidden_b,  # [K, C, T + 1, B, H], after a turn, with a stride of B: out
    products,  # P [K, C - 1, B, N, 4 H]
    answers,
    gram,  # Q [K, C, B, N, H + 1]; W_k' W_k [K, C, H + 1, H + 1]
    scalars,  # [K, C, 6, H + 1]: weights of the state, then the bias
    previous,
    norms,  # [K, C, B, N]
    raw,
    raw_b,  # [K, C, T, B, 6], at a turn, with a stride of B: out
    weights,
    cosines,
    key_norms,  # out: [K, C, B, N] twice, [K, C, B]
    B,
    T,
    C: tl.constexpr,
    H: tl.constexpr,
    N: tl.constexpr,
    UNITS: tl.constexpr,
    SLOTS: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Run all stages of one run and session per program.

    UNITS, SLOTS: H and N rounded up to powers of two; ROWS: see ``_gram_product``.
    """
    k, b = tl.program_id(0) // B, tl.program_id(0) % B
    unit, slot = tl.arange(0, UNITS), tl.arange(0, SLOTS)
    has, valid = unit < H, slot < N
    tile = valid[:, None] & has[None, :]
    at = tl.zeros([SLOTS], dtype=weights.dtype.element_ty)
    for c in range(C):
        kc = k * C + c
        row = kc * B + b
        gate_at = gates + (kc * T * B + b) * 4 * H + unit
        i, f, g, o = _load_gates(gate_at, has, H)
        # No branch for c = 0, whose products and weights are zero: some versions of Triton cannot compile it.
        part = products + ((k * (C - 1) + c - 1) * B + b) * N * 4 * H + slot[:, None] * 4 * H + unit[None, :]
        follows = tile & (c > 0)
        i += tl.sum(load(part, follows) * at[:, None], 0)
        f += tl.sum(load(part + H, follows) * at[:, None], 0)
        g += tl.sum(load(part + 2 * H, follows) * at[:, None], 0)
        o += tl.sum(load(part + 3 * H, follows) * at[:, None], 0)
        i, f, g, o = sigmoid(i), sigmoid(f), tanh(g), sigmoid(o)
        _store_gates(gate_at, i, f, g, o, has, H)
        cell_at = cells + (kc * (T + 1) * B + b) * H + unit
        cell = f * load(cell_at, has) + i * g
        cell_tanh = tanh(cell)
        state = tl.where(has, o * cell_tanh, 0.0)
        tl.store(cell_at + B * H, cell, mask=has)
        tl.store(squashed + (kc * T * B + b) * H + unit, cell_tanh, mask=has)
        tl.store(hidden + (kc * (T + 1) * B + b) * hidden_b + unit, state, mask=has)

        answer_at = answers + row * N * (H + 1) + slot * (H + 1)
        answer = load(answer_at[:, None] + unit[None, :], tile)
        dots = tl.sum(answer * state[None, :], 1) + load(answer_at + H, valid)
        gram_at = gram + kc * (H + 1) * (H + 1)
        square = _gram_product(gram_at, state, unit, has, H, UNITS, ROWS)
        linear = load(gram_at + H * (H + 1) + unit, has)
        norm2 = tl.sum(state * (square + 2 * linear), 0) + tl.load(gram_at + H * (H + 2))
        key_norm = tl.maximum(tl.sqrt(tl.maximum(norm2, 0.0)), FLOOR)
        cosine = dots / (key_norm * tl.load(norms + row * N + slot, mask=valid, other=1.0))
        scalars_at = scalars + kc * SCALARS * (H + 1)
        r0, r1 = _scalar(scalars_at, 0, state, unit, has, H), _scalar(scalars_at, 1, state, unit, has, H)
        r2, r3 = _scalar(scalars_at, 2, state, unit, has, H), _scalar(scalars_at, 3, state, unit, has, H)
        r4, r5 = _scalar(scalars_at, 4, state, unit, has, H), _scalar(scalars_at, 5, state, unit, has, H)
        store_scalars(raw + (kc * T * B + b) * raw_b, r0, r1, r2, r3, r4, r5)
        tl.store(cosines + row * N + slot, cosine, mask=valid)
        tl.store(key_norms + row, key_norm)

        before = load(previous + row * N + slot, valid)
        at, _, _, _, _, _, _, _ = address(r0, r1, r2, r3, r4, r5, cosine, before, valid, N, SLOTS)
        tl.store(weights + row * N + slot, at, mask=valid)


@triton.jit
def backward_turn(
    d_weights,  # [K, C, B, N]: gradients except from the next stage
    d_hidden,
    d_hidden_b,
    d_cells,  # [K, C, B, H]: d_hidden with a stride of B, except from this stage's read head; d_cells of the new cell
    gates,
    cells,
    squashed,  # as after the forward
    hidden,
    hidden_b,
    products,
    answers,
    gram,
    scalars,
    previous,
    norms,
    raw,
    raw_b,
    cosines,
    key_norms,
    d_gates,  # [K, C, T, B, 4 H], at a turn: out
    d_old_cells,
    d_previous,  # out: [K, C, B, H], [K, C, B, N]
    dots,
    pulls,
    key_pulls,  # out, ``HeadGradients``: [K, C, B, N] twice, [K, C, B]
    d_raw,  # strides as raw: out
    B,
    T,
    C: tl.constexpr,
    H: tl.constexpr,
    N: tl.constexpr,
    UNITS: tl.constexpr,
    SLOTS: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Backward of ``forward_turn``: the same stages in reverse."""
    k, b = tl.program_id(0) // B, tl.program_id(0) % B
    unit, slot = tl.arange(0, UNITS), tl.arange(0, SLOTS)
    has, valid = unit < H, slot < N
    tile = valid[:, None] & has[None, :]
    propagated = tl.zeros([SLOTS], dtype=cosines.dtype.element_ty)
    for back in range(C):
        c = C - 1 - back
        kc = k * C + c
        row = kc * B + b
        r0, r1, r2, r3, r4, r5 = load_scalars(raw + (kc * T * B + b) * raw_b)
        cosine = load(cosines + row * N + slot, valid)
        before = load(previous + row * N + slot, valid)
        d_at = load(d_weights + row * N + slot, valid) + propagated
        d_cosine, d_before, d0, d1, d2, d3, d4, d5 = address_backward(
            d_at, r0, r1, r2, r3, r4, r5, cosine, before, valid, N, SLOTS
        )
        tl.store(d_previous + row * N + slot, d_before, mask=valid)
        store_scalars(d_raw + (kc * T * B + b) * raw_b, d0, d1, d2, d3, d4, d5)
        norm = tl.load(norms + row * N + slot, mask=valid, other=1.0)
        key_norm = tl.load(key_norms + row)
        dot, pull, key_pull = cosine_backward(d_cosine, cosine, key_norm, norm)
        tl.store(dots + row * N + slot, dot, mask=valid)
        tl.store(pulls + row * N + slot, pull, mask=valid)
        tl.store(key_pulls + row, key_pull)

        state = load(hidden + (kc * (T + 1) * B + b) * hidden_b + unit, has)
        cell_tanh = load(squashed + (kc * T * B + b) * H + unit, has)
        answer_at = answers + row * N * (H + 1) + slot[:, None] * (H + 1) + unit[None, :]
        gram_at = gram + kc * (H + 1) * (H + 1)
        square = _gram_product(gram_at, state, unit, has, H, UNITS, ROWS)
        linear = load(gram_at + H * (H + 1) + unit, has)
        d_state = load(d_hidden + row * d_hidden_b + unit, has)
        d_state += tl.sum(load(answer_at, tile) * dot[:, None], 0) + key_pull * (square + linear)
        own = scalars + kc * SCALARS * (H + 1) + unit
        d_state += d0 * load(own, has) + d1 * load(own + H + 1, has)
        d_state += d2 * load(own + 2 * H + 2, has) + d3 * load(own + 3 * H + 3, has)
        d_state += d4 * load(own + 4 * H + 4, has) + d5 * load(own + 5 * H + 5, has)

        gate_at = gates + (kc * T * B + b) * 4 * H + unit
        i, f, g, o = _load_gates(gate_at, has, H)
        cell = load(cells + (kc * (T + 1) * B + b) * H + unit, has)
        d_cell = load(d_cells + row * H + unit, has) + d_state * o * (1 - cell_tanh * cell_tanh)
        d_i, d_f = d_cell * g * i * (1 - i), d_cell * cell * f * (1 - f)
        d_g, d_o = d_cell * i * (1 - g * g), d_state * cell_tanh * o * (1 - o)
        _store_gates(d_gates + (kc * T * B + b) * 4 * H + unit, d_i, d_f, d_g, d_o, has, H)
        tl.store(d_old_cells + row * H + unit, d_cell * f, mask=has)
        if c > 0:
            part = products + ((k * (C - 1) + c - 1) * B + b) * N * 4 * H + slot[:, None] * 4 * H + unit[None, :]
            propagated = tl.sum(load(part, tile) * d_i[None, :], 1)
            propagated += tl.sum(load(part + H, tile) * d_f[None, :], 1)
            propagated += tl.sum(load(part + 2 * H, tile) * d_g[None, :], 1)
            propagated += tl.sum(load(part + 3 * H, tile) * d_o[None, :], 1)
