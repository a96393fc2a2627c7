"""Numerical safety, as properties: the step functions at extreme values, and every implementation of the cascade.

``IMPLEMENTATIONS`` is the one list to add to: what it makes of a reference model is held to the same properties.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cache import Store
from pipeline.training.data import session_features
from pipeline.training.errors import FeatureError, TrainingError
from pipeline.training.losses import turnwise_cross_entropy
from pipeline.training.models import build_model
from pipeline.training.models._ntm import (
    HEADS,
    Addressing,
    Heads,
    MemoryState,
    access,
    content,
    head_sizes,
    heads,
    sharpen,
    shift_weights,
)
from pipeline.training.models.cm_ntm import CMNTM
from tests.pipeline.training.sessions import sessions, write_store


@dataclass(frozen=True)
class Implementation:
    """``of(reference)`` computes what the reference computes, from the same weights, in the same mode and precision.

    Called with (queries [B, T, D], lengths [B]) -> [B, T, D]; its gradients are those of ``named_parameters()``.
    """

    name: str
    of: Callable[[CMNTM], nn.Module]


IMPLEMENTATIONS = [Implementation("reference", lambda model: model)]
implementations = pytest.mark.parametrize("implementation", IMPLEMENTATIONS, ids=lambda i: i.name)

B, N, M, K, D, T = 5, 4, 7, 3, 6, 3  # sessions, slots, width, hidden, features, turns: all sizes differ
precisions = st.sampled_from([torch.float32, torch.float64])


def randoms(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


# ---- one memory: the step functions ------------------------------------------------------------------------------


@st.composite
def a_memory(draw: st.DrawFn, dtype: torch.dtype, slots: int) -> Tensor:
    """[B, N, M]: zero, the initial constant, rows of which one is zero, or random ones of any size."""
    kind = draw(st.sampled_from(["zero", "constant", "one zero row", "random"]))
    memory = randoms(draw(st.integers(0, 999)), B, slots, M, dtype=dtype) * 10.0 ** draw(st.floats(-9, 6))
    if kind == "zero":
        memory.zero_()
    elif kind == "constant":
        memory.fill_(1e-6)
    elif kind == "one zero row":
        memory[:, 0] = 0
    return memory


@st.composite
def a_stand(draw: st.DrawFn, dtype: torch.dtype, slots: int) -> Tensor:
    """Weights [B, H, N]: one-hot, uniform or random."""
    kind = draw(st.sampled_from(["one-hot", "uniform", "random"]))
    if kind == "one-hot":
        return torch.eye(slots, dtype=dtype)[draw(st.integers(0, slots - 1))].expand(B, HEADS, slots).clone()
    spread = 0.0 if kind == "uniform" else draw(st.floats(0.1, 30))
    return (spread * randoms(draw(st.integers(0, 999)), B, HEADS, slots, dtype=dtype)).softmax(-1)


@st.composite
def some_addressing(draw: st.DrawFn, dtype: torch.dtype) -> Addressing:
    """Any key, the zero one too; strength up to 100, gate and shift at their ends too, sharpening in [1, 20]."""

    def each(low: float, high: float) -> Tensor:
        return torch.full((B, HEADS, 1), draw(st.floats(low, high)), dtype=dtype)

    key = randoms(draw(st.integers(0, 999)), B, HEADS, M, dtype=dtype) * draw(st.sampled_from([0.0, 1e-6, 1.0, 1e4]))
    shift = torch.eye(3, dtype=dtype)[draw(st.integers(0, 2))].expand(B, HEADS, 3).clone()
    if draw(st.booleans()):
        shift = randoms(draw(st.integers(0, 999)), B, HEADS, 3, dtype=dtype).softmax(-1)
    return Addressing(key, each(0, 100), each(0, 1), shift, each(1, 20))


def a_state(memory: Tensor, weights: Tensor) -> MemoryState:
    empty = memory.new_zeros(len(memory), K)
    return MemoryState(memory, memory.new_zeros(len(memory), M), empty, empty, weights)


def moved(state: MemoryState, parameters: Heads) -> MemoryState:
    return access(state, state.hidden, state.cell, parameters)


@settings(max_examples=80, deadline=None)
@given(data=st.data(), dtype=precisions, slots=st.sampled_from([1, 2, 3, 4, 16]))
def test_weights_are_a_distribution_and_gradients_finite_at_any_state(
    data: st.DataObject, dtype: torch.dtype, slots: int
) -> None:
    memory, weights = data.draw(a_memory(dtype, slots)), data.draw(a_stand(dtype, slots))
    addressing = data.draw(some_addressing(dtype))
    leaves = [part.requires_grad_() for part in (memory, weights, *addressing)]
    erase, add = randoms(1, B, M, dtype=dtype).sigmoid(), randoms(2, B, M, dtype=dtype)
    after = moved(a_state(memory, weights), Heads(Addressing(*leaves[2:]), erase, add))
    assert (after.weights >= 0).all()
    torch.testing.assert_close(after.weights.sum(-1), torch.ones(B, HEADS, dtype=dtype), rtol=0, atol=1e-6)
    assert torch.isfinite(after.memory).all() and torch.isfinite(after.read).all()
    mix = [randoms(n, *part.shape, dtype=dtype) for n, part in enumerate(after)]
    sum((part * own).sum() for part, own in zip(after, mix, strict=True)).backward()
    for name, leaf in zip(("memory", "weights", *Addressing._fields), leaves, strict=True):
        assert torch.isfinite(leaf.grad).all(), f"gradient of {name}"


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 999), scale=st.floats(0, 1000), dtype=precisions)
def test_head_parameters_stay_in_range_whatever_the_layer_puts_out(seed: int, scale: float, dtype: torch.dtype) -> None:
    """Open ranges hold until the type itself rounds to their ends, from raw values of about 17 in float32."""
    raw = (scale * randoms(seed, B, HEADS * sum(head_sizes(M)) + 2 * M, dtype=dtype)).requires_grad_()
    parameters = heads(raw, M)
    addressing, erase, _ = parameters
    assert (addressing.strength >= 0).all() and (addressing.sharpening >= 1).all()
    assert ((addressing.gate >= 0) & (addressing.gate <= 1)).all() and ((erase >= 0) & (erase <= 1)).all()
    if raw.abs().max() < 16:
        assert ((erase > 0) & (erase < 1)).all() and ((addressing.gate > 0) & (addressing.gate < 1)).all()
    torch.testing.assert_close(addressing.shift.sum(-1), torch.ones(B, HEADS, dtype=dtype), rtol=0, atol=1e-6)
    after = moved(
        a_state(randoms(3, B, N, M, dtype=dtype), randoms(4, B, HEADS, N, dtype=dtype).softmax(-1)), parameters
    )
    assert (after.weights >= 0).all()
    torch.testing.assert_close(after.weights.sum(-1), torch.ones(B, HEADS, dtype=dtype), rtol=0, atol=1e-6)
    (after.memory.mean() + after.read.mean() + after.weights[..., 0].mean()).backward()
    assert torch.isfinite(raw.grad).all()


@settings(max_examples=60, deadline=None)
@given(data=st.data(), dtype=precisions, slots=st.sampled_from([1, 2, 3, 4, 16]))
def test_the_shift_is_the_circulant_product(data: st.DataObject, dtype: torch.dtype, slots: int) -> None:
    weights, shift = data.draw(a_stand(dtype, slots)), data.draw(some_addressing(dtype)).shift
    circulant = torch.zeros(B, HEADS, slots, slots, dtype=dtype)
    for i in range(slots):
        for offset, amount in zip((-1, 0, 1), shift.unbind(-1), strict=True):
            circulant[:, :, i, (i + offset) % slots] += amount
    expected = (circulant @ weights.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(shift_weights(weights, shift), expected, rtol=0, atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), dtype=precisions, slots=st.sampled_from([1, 2, 4, 16]), gamma=st.floats(1, 20))
def test_sharpening_keeps_the_order_and_a_one_hot(
    data: st.DataObject, dtype: torch.dtype, slots: int, gamma: float
) -> None:
    weights = data.draw(a_stand(dtype, slots))
    sharpened = sharpen(weights, torch.full((B, HEADS, 1), gamma, dtype=dtype))
    assert (sharpened.max(-1).values >= weights.max(-1).values - 1e-6).all()
    at_most = weights.argmax(-1, keepdim=True)
    torch.testing.assert_close(sharpened.gather(-1, at_most)[..., 0], sharpened.max(-1).values)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_zero_memory_or_key_has_no_preferred_slot(dtype: torch.dtype) -> None:
    memory, key = randoms(1, B, N, M, dtype=dtype), randoms(2, B, HEADS, M, dtype=dtype)
    strength = torch.full((B, HEADS, 1), 50.0, dtype=dtype)
    even = torch.full((B, HEADS, N), 1 / N, dtype=dtype)
    torch.testing.assert_close(content(torch.zeros_like(memory), key, strength), even)
    torch.testing.assert_close(content(memory, torch.zeros_like(key), strength), even)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), slots=st.sampled_from([1, 2, 3, 4, 16]), by=st.integers(1, 15))
def test_rolling_rows_with_the_heads_leaves_the_read_unchanged(data: st.DataObject, slots: int, by: int) -> None:
    memory, weights = data.draw(a_memory(torch.float64, slots)), data.draw(a_stand(torch.float64, slots))
    parameters = Heads(data.draw(some_addressing(torch.float64)), randoms(1, B, M).sigmoid(), randoms(2, B, M))
    one = moved(a_state(memory, weights), parameters)
    other = moved(a_state(memory.roll(by, 1), weights.roll(by, 2)), parameters)
    torch.testing.assert_close(one.read, other.read, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(one.memory.roll(by, 1), other.memory, rtol=1e-9, atol=1e-12)


# ---- the whole cascade: every implementation ---------------------------------------------------------------------


def generic(stages: int = 3, slots: int = N, dtype: torch.dtype = torch.float64, **options: Any) -> CMNTM:
    """Random weights, memories, head positions and statistics."""
    model = build_model("cm_ntm", {"stages": stages, "slots": slots, "width": M, "hidden": K} | options, D).to(dtype)
    with torch.no_grad():
        for number, (name, value) in enumerate(model.state_dict().items()):
            noise = randoms(number, *value.shape, dtype=dtype)
            value.copy_(noise.square() + 0.3 if name.endswith("running_var") else 0.7 * noise)
    return model.train()


def a_batch(batch: int = B, turns: int = T, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    return randoms(77, batch, turns, D, dtype=dtype), torch.arange(batch) % turns + 1


def extreme(model: CMNTM, case: str) -> CMNTM:
    """The model with every stage put into one extreme state, by its weights alone."""
    key = list(range(M)) + list(range(M + 6, 2 * M + 6))  # rows of the heads' layer: both keys
    sharpening = [M + 5, 2 * M + 11]
    with torch.no_grad():
        for stage in model.stages:
            if case == "zero memory":
                stage.memory.zero_()
            elif case == "zero key":
                stage.heads.weight[key], stage.heads.bias[key] = 0, 0
            elif case == "one-hot weights":
                stage.start.copy_(torch.eye(stage.start.shape[1])[[0, -1]] * 1e4)
            elif case == "sharpening of 20":
                stage.heads.weight[sharpening], stage.heads.bias[sharpening] = 0, 19.0
            else:
                assert case == "public initial values"
    return model


def check_finite(model: nn.Module, queries: Tensor, lengths: Tensor) -> None:
    """Outputs, loss and every parameter's gradient."""
    outputs = model(queries, lengths)
    assert outputs.shape == queries.shape and torch.isfinite(outputs).all()
    loss = turnwise_cross_entropy(outputs, randoms(5, *queries.shape, dtype=queries.dtype))
    model.zero_grad()
    (loss + outputs.square().mean()).backward()
    assert torch.isfinite(loss)
    assert [n for n, p in model.named_parameters() if p.requires_grad and not torch.isfinite(p.grad).all()] == []


CASES = ["zero memory", "zero key", "one-hot weights", "sharpening of 20", "public initial values"]


@implementations
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("turns", [1, 4])
def test_extreme_states_give_finite_gradients(
    implementation: Implementation, case: str, dtype: torch.dtype, turns: int
) -> None:
    for slots in (1, 2, N):
        fresh = build_model("cm_ntm", {"stages": 3, "slots": slots, "width": M, "hidden": K}, D).to(dtype)
        model = fresh if case == "public initial values" else generic(slots=slots, dtype=dtype)
        check_finite(implementation.of(extreme(model.train(), case)), *a_batch(turns=turns, dtype=dtype))


@implementations
@settings(max_examples=25, deadline=None)
@given(
    exponent=st.floats(-3, 3),
    turns=st.integers(1, 4),
    stages=st.integers(1, 3),
    init=st.sampled_from(["paper", "symmetry-breaking", "addressed"]),
    kind=st.sampled_from(["random", "equal sessions", "zero"]),
    dtype=precisions,
)
def test_feature_scales_from_1e_minus_3_to_1e3(
    implementation: Implementation, exponent: float, turns: int, stages: int, init: str, kind: str, dtype: torch.dtype
) -> None:
    model = build_model("cm_ntm", {"stages": stages, "hidden": K, "init": init}, D).to(dtype).train()
    queries, lengths = a_batch(turns=turns, dtype=dtype)
    if kind == "equal sessions":  # a batch variance of zero
        queries = queries[:1].expand_as(queries)
    check_finite(implementation.of(model), queries * (0 if kind == "zero" else 10**exponent), lengths)


@implementations
@settings(max_examples=15, deadline=None)
@given(
    stages=st.integers(1, 4), slots=st.sampled_from([1, 2, 4]), turns=st.integers(1, 4), order=st.permutations(range(B))
)
def test_permuting_the_batch_permutes_the_output(
    implementation: Implementation, stages: int, slots: int, turns: int, order: list[int]
) -> None:
    model = implementation.of(generic(stages, slots))
    queries, lengths = a_batch(turns=turns)
    one, other = model(queries, lengths), model(queries[order], lengths[order])
    torch.testing.assert_close(one[order], other, rtol=1e-9, atol=1e-11)


@implementations
@settings(max_examples=15, deadline=None)
@given(stages=st.integers(1, 3), slots=st.sampled_from([2, 3, 4]), by=st.integers(1, 3), stage=st.integers(0, 2))
def test_rolling_a_memory_with_its_heads_leaves_the_output_unchanged(
    implementation: Implementation, stages: int, slots: int, by: int, stage: int
) -> None:
    reference, rolled = generic(stages, slots), generic(stages, slots)
    with torch.no_grad():
        own = rolled.stages[stage % stages]
        own.memory.copy_(own.memory.roll(by, 0))
        own.start.copy_(own.start.roll(by, 1))
    queries, lengths = a_batch()
    torch.testing.assert_close(
        implementation.of(rolled)(queries, lengths),
        implementation.of(reference)(queries, lengths),
        rtol=1e-9,
        atol=1e-11,
    )


@implementations
def test_a_batch_of_one_is_refused_in_training_and_served_in_inference(implementation: Implementation) -> None:
    """One session has no batch statistics; with C = 1 nothing needs them, and inference has the running ones."""
    queries, lengths = a_batch()
    with pytest.raises(TrainingError, match="at least two sessions"):
        implementation.of(generic())(queries[:1], lengths[:1])
    check_finite(implementation.of(generic(1)), queries[:1], lengths[:1])
    model = implementation.of(generic().eval())
    torch.testing.assert_close(model(queries[:1], lengths[:1]), model(queries, lengths)[:1], rtol=1e-9, atol=1e-11)


@settings(max_examples=25, deadline=None)
@given(
    exponent=st.floats(-3, 3),
    stages=st.integers(1, 3),
    init=st.sampled_from(["paper", "symmetry-breaking", "addressed"]),
)
def test_a_dialogue_of_any_scale_keeps_its_weights_a_distribution(exponent: float, stages: int, init: str) -> None:
    model = build_model("cm_ntm", {"stages": stages, "slots": N, "hidden": K, "init": init}, D).eval()
    queries, _ = a_batch(turns=4, dtype=torch.float32)
    state = model.initial_state(B)
    with torch.no_grad():
        for query in (queries * 10**exponent).unbind(1):
            _, state = model.step(query, state)
            for memory in state.stages:
                assert (memory.weights >= 0).all() and all(torch.isfinite(part).all() for part in memory)
                torch.testing.assert_close(memory.weights.sum(-1), torch.ones(B, HEADS), rtol=0, atol=1e-6)


# ---- features that are not finite never reach a model --------------------------------------------------------------


@pytest.mark.parametrize("table", ["query", "target"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_features_that_are_not_finite_are_refused_naming_rows_and_sessions(
    tmp_path: Path, table: str, value: float
) -> None:
    made = sessions((2, 3))
    write_store(tmp_path / "s", made)
    store = Store.open(tmp_path / "s", verify="header")  # a user's file, whose digests nobody has checked
    sound = session_features(store, made)
    rows = [int(store.find(table, store.keys(table)[[n]])[0]) for n in (0, 3)]
    assert len(sound) == 2
    store = Store.open(tmp_path / "s", verify="header")
    with h5py.File(tmp_path / "s" / store.tables[table].shards[0].file, "r+") as shard:
        features = next(d for d in shard.values() if d.dtype.kind == "f")
        for row in rows:
            features[row, 2] = value  # one number of the row is enough
    with pytest.raises(FeatureError, match=rf"table '{table}'.*in (1|2) rows \(.*\), used by \d sessions \(first: 's"):
        session_features(store, made)
