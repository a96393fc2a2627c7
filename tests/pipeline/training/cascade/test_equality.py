"""The fast path, as torch operations and with compiled loops, against the reference in float64: outputs, gradients of every
parameter, running statistics."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from pipeline.training.cascade import products
from pipeline.training.cascade.stacked import FastCascade
from pipeline.training.cascade.turn_ops import TurnOps
from pipeline.training.cascade.turn_torch import TorchTurn
from pipeline.training.determinism import matmul_precision
from pipeline.training.errors import TrainingError
from tests.pipeline.training.cascade.cascades import GRADIENTS, OUTPUTS, batch, cascade, differences, gradients_of


@pytest.fixture(params=["torch", pytest.param("numba", marks=pytest.mark.slow)])  # compiled in double precision first
def ops(request: pytest.FixtureRequest) -> TurnOps:
    if request.param == "torch":
        return TorchTurn()
    pytest.importorskip("numba", reason="numba is not installed: the extras `cpu` and `test` bring it")
    from pipeline.training.cascade.turn_numba import NumbaTurn

    return NumbaTurn()


STAGES, SLOTS, TURNS, MEMORIES = (1, 2, 4, 16), (1, 2, 4, 16), (1, 2, 3, 4), ("random", "constant")
PAIRWISE = [  # each value of one beside each value of another
    (c, n, TURNS[(i + j) % 4], MEMORIES[(i + j // 2) % 2]) for i, c in enumerate(STAGES) for j, n in enumerate(SLOTS)
]


def test_every_two_values_meet_in_a_case() -> None:
    columns = list(zip(*PAIRWISE, strict=True))
    for (one, these), (other, those) in itertools.combinations(enumerate((STAGES, SLOTS, TURNS, MEMORIES)), 2):
        assert set(zip(columns[one], columns[other], strict=True)) == set(itertools.product(these, those))


@pytest.mark.parametrize(("stages", "slots", "turns", "memory"), PAIRWISE)
def test_outputs_and_gradients_equal_the_reference(
    ops: TurnOps, stages: int, slots: int, turns: int, memory: str
) -> None:
    found = differences([cascade(stages, memory, stages=stages, slots=slots)], [batch(turns)], ops)
    assert found.outputs <= OUTPUTS and found.statistics <= OUTPUTS
    assert found.gradient <= GRADIENTS, found.parameter


@pytest.mark.parametrize(
    "options", [{"init": "symmetry-breaking"}, {"width": 5}, {"width": 20}, {"residual": True}, {"residual": "ewma"}]
)
def test_every_option_of_the_reference_is_there(ops: TurnOps, options: dict[str, Any]) -> None:
    memory = "constant" if "init" not in options else "random"
    found = differences([cascade(3, memory, stages=3, **options)], [batch(4)], ops)
    assert found.outputs <= OUTPUTS and found.statistics <= OUTPUTS
    assert found.gradient <= GRADIENTS, found.parameter


@pytest.mark.parametrize("memory", ["random", "constant"])
def test_several_runs_at_once_equal_each_run_alone(ops: TurnOps, memory: str) -> None:
    models = [cascade(seed, memory, stages=3) for seed in range(3)]
    found = differences(models, [batch(4, seed) for seed in range(3)], ops)
    assert found.outputs <= OUTPUTS and found.statistics <= OUTPUTS
    assert found.gradient <= GRADIENTS, found.parameter


@pytest.mark.parametrize("memory", ["random", "constant"])
def test_a_product_of_each_matrix_is_that_of_the_stack(
    ops: TurnOps, memory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """How reduced precision is computed on a CPU; double precision is never reduced, so all must be equal still."""
    monkeypatch.setattr(products, "_LONG", 1)
    models = [cascade(seed, memory, stages=3) for seed in range(2)]
    with matmul_precision("medium"):
        found = differences(models, [batch(4, seed) for seed in range(2)], ops)
    assert found.outputs <= OUTPUTS and found.statistics <= OUTPUTS
    assert found.gradient <= GRADIENTS, found.parameter


def test_stacked_products_are_rounded_as_a_single_one() -> None:
    """torch's own stacked product is not, on a CPU that has bfloat16."""
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(2, 256, 256, generator=generator) for _ in range(2))
    with matmul_precision("medium"):
        single = torch.stack([one @ other for one, other in zip(left, right, strict=True)])
        assert torch.equal(products.product(left, right), single)
        assert torch.equal(products.add_product(torch.zeros_like(single), left, right), single)


def test_stacks_are_one_batch_where_they_can_be_and_else_few() -> None:
    """Parts of the last dimension are still one batch; of five runs without their first stage, each stage is one."""
    generator = torch.Generator().manual_seed(0)
    left, right, out = (torch.randn(5, 3, 4, 6, generator=generator, dtype=torch.float64) for _ in range(3))
    columns = left, right.mT, out[..., :4]
    later = left[:, 1:], right.mT[:, 1:], out[:, 1:, :, :4]
    assert [len(list(products._parts(3, *stacks))) for stacks in (columns, later)] == [1, 2]
    for one, other, place in (columns, later):
        assert products.product(one, other, place) is place
        assert torch.allclose(place, one @ other, rtol=0, atol=1e-12)


def test_a_backward_after_another_forward_is_refused() -> None:
    fast = FastCascade([cascade(0, stages=2)])
    queries, _, _ = batch(2)
    first = fast(queries[None])
    fast(queries[None])
    with pytest.raises(RuntimeError, match="call backward first"):
        first.sum().backward()


def test_a_second_batch_does_not_see_the_first(ops: TurnOps) -> None:
    """The room of a forward is used again: what it held must not shine through."""
    model = cascade(0, "constant", stages=3)
    fast = FastCascade([model], ops)
    for seed in (1, 2):
        queries, lengths, _ = batch(4, seed)
        assert torch.allclose(fast(queries[None])[0], model(queries, lengths), rtol=0, atol=OUTPUTS)


def test_inference_uses_the_running_statistics() -> None:
    model = cascade(0, "constant", stages=3)
    for seed in range(3):
        queries, lengths, _ = batch(3, seed)
        model(queries, lengths)
    model.eval()
    fast = FastCascade([model]).eval()
    queries, lengths, _ = batch(4, 9, sessions=1)
    with torch.no_grad():
        assert torch.allclose(fast(queries[None])[0], model(queries, lengths), rtol=0, atol=OUTPUTS)


def test_a_training_batch_of_one_session_has_no_statistics() -> None:
    queries, _, _ = batch(2, sessions=1)
    with pytest.raises(TrainingError, match="at least two sessions"):
        FastCascade([cascade(0, stages=2)])(queries[None])


def test_written_back_parameters_are_those_that_were_taken() -> None:
    models = [cascade(seed, stages=3) for seed in range(2)]
    blank = [cascade(seed + 10, stages=3) for seed in range(2)]
    FastCascade(models).write_to(blank)
    for model, copied in zip(models, blank, strict=True):
        for (name, value), (_, other) in zip(model.state_dict().items(), copied.state_dict().items(), strict=True):
            assert torch.equal(value, other), name


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("ops", ["torch", "numba"], indirect=True)
def test_single_precision_stays_finite_and_near(ops: TurnOps, scale: float) -> None:
    model = cascade(0, "constant", torch.float32, stages=3)
    queries, lengths, weights = (v.float() if v.is_floating_point() else v for v in batch(4))
    fast = FastCascade([model], ops)
    found, expected = fast(scale * queries[None])[0], model(scale * queries, lengths)
    (found * weights).sum().backward()
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4)
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in fast.parameters())
    if scale == 1:
        (expected * weights).sum().backward()
        norms = {name: float(p.grad.norm()) for name, p in model.named_parameters() if p.grad is not None}
        for name, gradient in gradients_of(fast, [model])[0].items():
            apart = float((gradient - model.get_parameter(name).grad).detach().norm()) if name in norms else 0.0
            assert apart <= 1e-3 * norms.get(name, 0.0) + 1e-5 * max(norms.values()), name
