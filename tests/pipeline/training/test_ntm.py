"""Properties of one memory's step functions. Every size differs, so that a transposed axis cannot hide."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipeline.training.models._ntm import (
    HEADS,
    Addressing,
    Heads,
    MemoryState,
    access,
    address,
    content,
    head_sizes,
    heads,
    read_memory,
    sharpen,
    shift_weights,
    write_memory,
)

B, N, M, K = 5, 4, 7, 3  # sessions, slots, width, hidden; H = 2 heads


def randoms(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def raw_outputs(seed: int = 0, batch: int = B, width: int = M, dtype: torch.dtype = torch.float64) -> Tensor:
    return randoms(seed, batch, HEADS * sum(head_sizes(width)) + 2 * width, dtype=dtype)


def a_state(seed: int = 10, dtype: torch.dtype = torch.float64, slots: int = N, width: int = M) -> MemoryState:
    """Neither memory nor heads at their initial values: there a test of the addressing would pass with any formula."""
    return MemoryState(
        randoms(seed, B, slots, width, dtype=dtype),
        randoms(seed + 1, B, width, dtype=dtype),
        randoms(seed + 2, B, K, dtype=dtype),
        randoms(seed + 3, B, K, dtype=dtype),
        randoms(seed + 4, B, HEADS, slots, dtype=dtype).softmax(-1),
    )


def moved(state: MemoryState, parameters: Heads) -> MemoryState:
    return access(state, state.hidden, state.cell, parameters)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    slots=st.sampled_from([1, 2, 3, 4, 16]),
    scale=st.sampled_from([1e-6, 1e-3, 1.0, 1e3]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_weights_are_a_distribution(seed: int, slots: int, scale: float, dtype: torch.dtype) -> None:
    state = a_state(seed % 1000, dtype, slots)
    state = state._replace(memory=state.memory * scale)
    after = moved(state, heads(raw_outputs(seed % 997, dtype=dtype) * 5, M))
    assert after.weights.shape == (B, HEADS, slots) and (after.weights >= 0).all()
    torch.testing.assert_close(after.weights.sum(-1), torch.ones(B, HEADS, dtype=dtype), rtol=0, atol=1e-6)
    assert all(torch.isfinite(part).all() for part in after)


def test_head_parameters_are_in_range() -> None:
    (key, strength, gate, shift, sharpening), erase, add = heads(raw_outputs() * 3, M)
    assert key.shape == (B, HEADS, M) and shift.shape == (B, HEADS, 3)
    assert (strength >= 0).all() and (sharpening >= 1).all()
    assert ((gate > 0) & (gate < 1)).all() and ((erase > 0) & (erase < 1)).all()
    torch.testing.assert_close(shift.sum(-1), torch.ones(B, HEADS, dtype=torch.float64))
    assert erase.shape == add.shape == (B, M)


def test_content_addressing_is_the_softmax_of_cosines() -> None:
    memory, key, strength = randoms(1, B, N, M), randoms(2, B, HEADS, M), randoms(3, B, HEADS, 1).exp()
    found = content(memory, key, strength)
    for b in range(B):
        for h in range(HEADS):
            cosines = torch.nn.functional.cosine_similarity(memory[b], key[b, h].expand(N, M), dim=-1)
            torch.testing.assert_close(found[b, h], (strength[b, h] * cosines).softmax(0))


def test_a_row_as_small_as_the_initial_memory_keeps_its_direction() -> None:
    width, dtype = 768, torch.float32
    rows = torch.randn(1, N, width, generator=torch.Generator().manual_seed(0), dtype=dtype)
    key = rows[:, 2:3]
    strength = torch.full((1, 1, 1), 5.0)
    torch.testing.assert_close(content(rows * 1e-6, key, strength), content(rows, key, strength), rtol=1e-5, atol=1e-7)


def test_shift_is_the_circulant_product() -> None:
    weights, shift = randoms(1, B, HEADS, N).softmax(-1), randoms(2, B, HEADS, 3).softmax(-1)
    found = shift_weights(weights, shift)
    for b in range(B):
        for h in range(HEADS):
            circulant = torch.zeros(N, N, dtype=torch.float64)
            for i in range(N):
                for offset, amount in zip((-1, 0, 1), shift[b, h], strict=True):
                    circulant[i, (i + offset) % N] += amount
            torch.testing.assert_close(found[b, h], circulant @ weights[b, h])


def test_sharpening_is_a_normalised_power() -> None:
    weights, gamma = randoms(1, B, HEADS, N).softmax(-1), 1 + randoms(2, B, HEADS, 1).exp()
    power = weights**gamma
    torch.testing.assert_close(sharpen(weights, gamma), power / power.sum(-1, keepdim=True))
    torch.testing.assert_close(sharpen(weights, torch.ones(B, HEADS, 1, dtype=torch.float64)), weights)


def test_one_hot_weights_and_large_exponents_stay_finite() -> None:
    for dtype in (torch.float32, torch.float64):
        weights = torch.eye(N, dtype=dtype).expand(HEADS, N, N).transpose(0, 1).contiguous().requires_grad_()
        gamma = torch.full((N, HEADS, 1), 20.0, dtype=dtype, requires_grad=True)
        sharpened = sharpen(weights, gamma)
        torch.testing.assert_close(sharpened, weights.detach())
        (sharpened * randoms(5, *sharpened.shape, dtype=dtype)).sum().backward()
        assert torch.isfinite(weights.grad).all() and torch.isfinite(gamma.grad).all()


def test_reading_and_writing() -> None:
    memory, weights = randoms(1, B, N, M), randoms(2, B, N).softmax(-1)
    erase, add = randoms(3, B, M).sigmoid(), randoms(4, B, M)
    written = write_memory(memory, weights, erase, add)
    read = read_memory(memory, weights)
    for b in range(B):
        torch.testing.assert_close(read[b], sum(weights[b, i] * memory[b, i] for i in range(N)))
        for i in range(N):
            expected = memory[b, i] * (1 - weights[b, i] * erase[b]) + weights[b, i] * add[b]
            torch.testing.assert_close(written[b, i], expected)


def test_both_heads_see_the_memory_before_the_write() -> None:
    state, parameters = a_state(), heads(raw_outputs(), M)
    after = moved(state, parameters)
    weights = address(state.memory, state.weights, parameters.addressing)
    torch.testing.assert_close(after.weights, weights)
    torch.testing.assert_close(after.read, read_memory(state.memory, weights[:, 0]))
    torch.testing.assert_close(
        after.memory, write_memory(state.memory, weights[:, 1], parameters.erase, parameters.add)
    )


def test_rolling_rows_with_the_heads_leaves_the_read_unchanged() -> None:
    state, parameters = a_state(), heads(raw_outputs(), M)
    rolled = state._replace(memory=state.memory.roll(1, 1), weights=state.weights.roll(1, 2))
    one, other = moved(state, parameters), moved(rolled, parameters)
    torch.testing.assert_close(one.read, other.read)
    torch.testing.assert_close(one.memory.roll(1, 1), other.memory)


def test_permuting_the_batch_permutes_the_state() -> None:
    state, raw, order = a_state(), raw_outputs(), torch.tensor([3, 0, 4, 1, 2])
    after = moved(state, heads(raw, M))
    permuted = moved(MemoryState(*(part[order] for part in state)), heads(raw[order], M))
    for one, other in zip(after, permuted, strict=True):
        torch.testing.assert_close(one[order], other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_zero_memory_and_zero_key_give_finite_gradients(dtype: torch.dtype) -> None:
    memory = torch.zeros(B, N, M, dtype=dtype, requires_grad=True)
    raw = torch.zeros_like(raw_outputs(dtype=dtype)).requires_grad_()
    state = a_state(dtype=dtype)._replace(memory=memory)
    after = moved(state, heads(raw, M))
    sum((part * randoms(n, *part.shape, dtype=dtype)).sum() for n, part in enumerate(after)).backward()
    assert torch.isfinite(memory.grad).all() and torch.isfinite(raw.grad).all()


def test_gradcheck_at_a_generic_state() -> None:
    batch, width = 2, 3
    raw = raw_outputs(1, batch, width).requires_grad_()
    memory = randoms(2, batch, N, width).requires_grad_()
    weights = randoms(3, batch, HEADS, N).requires_grad_()

    def step(raw: Tensor, memory: Tensor, weights: Tensor) -> tuple[Tensor, ...]:
        empty = memory.new_zeros(batch, K)
        after = moved(MemoryState(memory, empty, empty, empty, weights.softmax(-1)), heads(raw, width))
        return after.memory, after.read, after.weights

    assert torch.autograd.gradcheck(step, (raw, memory, weights))


def test_parameters_are_named_in_the_order_of_the_raw_outputs() -> None:
    raw = torch.arange(float(raw_outputs().shape[1])).expand(B, -1)
    parameters = heads(raw, M)
    assert isinstance(parameters.addressing, Addressing)
    torch.testing.assert_close(parameters.addressing.key[0, 0], torch.arange(float(M)))
    torch.testing.assert_close(parameters.addressing.key[0, 1], torch.arange(float(M)) + M + 6)
    torch.testing.assert_close(parameters.add[0], torch.arange(float(M)) + 2 * (M + 6) + M)
