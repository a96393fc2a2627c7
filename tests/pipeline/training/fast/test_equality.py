"""The fast path against the reference in float64: outputs, gradients of every parameter, running statistics."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.training.errors import TrainingError
from pipeline.training.fast.cascade import FastCascade
from pipeline.training.fast.chain import Chain
from pipeline.training.models import build_model
from pipeline.training.models.cm_ntm import CMNTM

SESSIONS, DIM, HIDDEN = 6, 12, 7
OUTPUTS, GRADIENTS = 1e-12, 1e-9  # largest difference; norm of the difference in norms of the gradient


def cascade(seed: int = 0, memory: str = "random", dtype: torch.dtype = torch.float64, **options: Any) -> CMNTM:
    """A reference model away from every symmetric point: at the public initialisation all heads see equal rows.

    ``memory``: "random" rows that differ, or "constant" ones as the public initialisation has them.
    """
    model = build_model("cm_ntm", {"hidden": HIDDEN, **options}, DIM, seed)
    assert isinstance(model, CMNTM)
    generator = torch.Generator().manual_seed(seed)
    model = model.to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator, dtype=dtype)
        for stage in model.stages:
            if memory == "random":
                stage.memory.copy_(torch.randn(stage.memory.shape, generator=generator, dtype=dtype))
    return model


def batch(turns: int, seed: int = 1, sessions: int = SESSIONS) -> tuple[Tensor, Tensor, Tensor]:
    """Queries [B, T, D] of ragged sessions padded by their last turn, their lengths, and weights of a loss."""
    generator = torch.Generator().manual_seed(seed)
    queries = torch.randn(sessions, turns, DIM, generator=generator, dtype=torch.float64)
    lengths = torch.arange(sessions) % turns + 1
    last = torch.minimum(torch.arange(turns), lengths[:, None] - 1)
    queries = queries.gather(1, last[..., None].expand_as(queries))
    return queries, lengths, torch.randn(queries.shape, generator=generator, dtype=torch.float64)


def gradients_of(fast: FastCascade, models: list[CMNTM]) -> list[dict[str, Tensor]]:
    """The stacked gradients under the reference's names, one dict a run."""
    holders = [copy.deepcopy(model) for model in models]
    carrier = copy.deepcopy(fast)
    with torch.no_grad():
        for parameter, source in zip(carrier.parameters(), fast.parameters(), strict=True):
            parameter.copy_(torch.zeros_like(source) if source.grad is None else source.grad)
    carrier.write_to(holders)
    return [dict(holder.named_parameters()) for holder in holders]


def compare(
    models: list[CMNTM], batches: list[tuple[Tensor, Tensor, Tensor]], chain: Chain | None = None
) -> None:
    """One forward and backward of each reference model on its own batch, and of all of them at once."""
    fast = FastCascade(models, chain)
    outputs = fast(torch.stack([queries for queries, _, _ in batches]))
    (outputs * torch.stack([weights for _, _, weights in batches])).sum().backward()
    found = gradients_of(fast, models)
    after = [copy.deepcopy(model) for model in models]
    fast.write_to(after)
    for k, (model, (queries, lengths, weights)) in enumerate(zip(models, batches, strict=True)):
        expected = model(queries, lengths)
        (expected * weights).sum().backward()
        assert float((outputs[k] - expected).detach().abs().max()) <= OUTPUTS
        scale = max(float(p.grad.norm()) for p in model.parameters() if p.grad is not None)
        for name, parameter in model.named_parameters():
            wanted = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            difference = float((found[k][name] - wanted).detach().norm())
            # A gradient that is zero but for rounding has no norm to compare with; the model's largest one serves.
            assert difference <= GRADIENTS * max(float(wanted.norm()), 1e-6 * scale), f"run {k}: {name}"
        for (name, buffer), (_, kept) in zip(model.named_buffers(), after[k].named_buffers(), strict=True):
            assert torch.allclose(buffer, kept, rtol=0, atol=OUTPUTS), f"run {k}: {name}"


@pytest.mark.parametrize("turns", [1, 2, 3, 4])
@pytest.mark.parametrize("slots", [1, 2, 4, 16])
@pytest.mark.parametrize("stages", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("memory", ["random", "constant"])
def test_outputs_and_gradients_equal_the_reference(memory: str, stages: int, slots: int, turns: int) -> None:
    compare([cascade(stages, memory, stages=stages, slots=slots)], [batch(turns)])


@pytest.mark.parametrize("options", [{"init": "symmetry-breaking"}, {"width": 5}, {"width": 20}, {"residual": True}, {"residual": "ewma"}])
def test_every_option_of_the_reference_is_there(options: dict[str, Any]) -> None:
    memory = "constant" if "init" not in options else "random"
    compare([cascade(3, memory, stages=3, **options)], [batch(4)])


@pytest.mark.parametrize("memory", ["random", "constant"])
def test_several_runs_at_once_equal_each_run_alone(memory: str) -> None:
    models = [cascade(seed, memory, stages=3) for seed in range(3)]
    compare(models, [batch(4, seed) for seed in range(3)])


def test_a_backward_after_another_forward_is_refused() -> None:
    fast = FastCascade([cascade(0, stages=2)])
    queries, _, _ = batch(2)
    first = fast(queries[None])
    fast(queries[None])
    with pytest.raises(RuntimeError, match="call backward first"):
        first.sum().backward()


def test_a_second_batch_does_not_see_the_first() -> None:
    """The room of a forward is used again: what it held must not shine through."""
    model = cascade(0, "constant", stages=3)
    fast = FastCascade([model])
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
def test_single_precision_stays_finite_and_near(scale: float) -> None:
    model = cascade(0, "constant", torch.float32, stages=3)
    queries, lengths, weights = (v.float() if v.is_floating_point() else v for v in batch(4))
    fast = FastCascade([model])
    found, expected = fast(scale * queries[None])[0], model(scale * queries, lengths)
    (found * weights).sum().backward()
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4)
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in fast.parameters())
