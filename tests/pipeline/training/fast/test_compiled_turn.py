"""The compiled loops of a turn against the reference in float64, and against the same operations in torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("numba", reason="numba is not installed: the extras `cpu` and `test` bring it")

from pipeline.training.fast import loops
from pipeline.training.fast.cascade import FastCascade
from pipeline.training.fast.compiled_turn import CompiledTurn
from tests.pipeline.training.fast.cascades import GRADIENTS, OUTPUTS, batch, cascade, differences


@pytest.mark.parametrize("turns", [1, 2, 3, 4])
@pytest.mark.parametrize("slots", [1, 2, 4, 16])
@pytest.mark.parametrize("stages", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("memory", ["random", "constant"])
def test_outputs_and_gradients_equal_the_reference(memory: str, stages: int, slots: int, turns: int) -> None:
    found = differences([cascade(stages, memory, stages=stages, slots=slots)], [batch(turns)], CompiledTurn())
    assert found.outputs <= OUTPUTS and found.statistics <= OUTPUTS
    assert found.gradient <= GRADIENTS, found.parameter


@pytest.mark.parametrize("options", [{"init": "symmetry-breaking"}, {"width": 5}, {"width": 20}, {"residual": "ewma"}])
def test_every_option_of_the_reference_is_there(options: dict[str, Any]) -> None:
    memory = "constant" if "init" not in options else "random"
    found = differences([cascade(3, memory, stages=3, **options)], [batch(4)], CompiledTurn())
    assert found.outputs <= OUTPUTS and found.statistics <= OUTPUTS
    assert found.gradient <= GRADIENTS, found.parameter


@pytest.mark.parametrize("memory", ["random", "constant"])
def test_several_runs_at_once_equal_each_run_alone(memory: str) -> None:
    models = [cascade(seed, memory, stages=3) for seed in range(3)]
    found = differences(models, [batch(4, seed) for seed in range(3)], CompiledTurn())
    assert found.outputs <= OUTPUTS and found.statistics <= OUTPUTS
    assert found.gradient <= GRADIENTS, found.parameter


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_single_precision_is_near_the_reference(scale: float) -> None:
    model = cascade(0, "constant", torch.float32, stages=3)
    queries, lengths, weights = (v.float() if v.is_floating_point() else v for v in batch(4))
    fast = FastCascade([model], CompiledTurn())
    found, expected = fast(scale * queries[None])[0], model(scale * queries, lengths)
    (found * weights).sum().backward()
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4)
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in fast.parameters())


@pytest.mark.parametrize("zero", ["memory", "key"])
def test_addressing_has_a_finite_gradient_at_a_zero(zero: str) -> None:
    """Memory, norms, states, raw outputs and where the head stood, of one run, stage and turn, two sessions, three slots."""
    random = np.random.default_rng(0).normal
    memory, raws = random(size=(1, 1, 2, 3, 4)), random(size=(1, 1, 1, 2, 10))
    if zero == "memory":
        memory[:] = 0
    else:
        raws[..., :4] = 0
    norms = np.maximum(np.linalg.norm(memory, axis=-1), loops.NORM_FLOOR)
    states, previous = np.zeros((1, 1, 2, 2, 4)), np.full((1, 1, 2, 3), 1 / 3)
    cosines, weights, d_previous, dots, pulls = (np.full(previous.shape, np.nan) for _ in range(5))
    loops.read(memory, norms, states, raws, previous, cosines, weights, 0, 0)
    d_raws, d_read = np.full(raws.shape, np.nan), random(size=(1, 1, 2, 4))
    loops.read_backward(
        memory, norms, raws, previous, cosines, d_read, random(size=previous.shape), d_raws, d_previous, dots, pulls, 0, 0
    )
    assert np.allclose(weights.sum(-1), 1, rtol=0, atol=1e-12)
    assert all(np.isfinite(found).all() for found in (states, d_raws, d_previous, dots, pulls))


def test_what_is_no_number_stays_none() -> None:
    """A step whose loss is not finite is left out: compiled sums must not hide it."""
    queries, _, _ = batch(3)
    queries[2, 1, 0] = torch.nan
    found = FastCascade([cascade(0, "constant", stages=2)], CompiledTurn()).eval()(queries[None])[0]
    assert bool(found[2].isnan().any()) and bool(found[0].isfinite().all())
