"""Finite differences against each hand-written backward, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pipeline.training.fast.cascade import CascadeFunction, LinearFunction
from pipeline.training.fast.cell import address, address_backward, row_norms, write, write_backward
from pipeline.training.fast.chain import StageByStage
from pipeline.training.fast.parameters import StackedCascade
from pipeline.training.fast.trace import Trace, Weights
from pipeline.training.models import build_model


def random(*sizes: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(sizes))
    return torch.randn(sizes, generator=generator, dtype=torch.float64).requires_grad_()


def test_linear() -> None:
    assert torch.autograd.gradcheck(LinearFunction.apply, (random(2, 3, 4), random(2, 5, 4)))


@pytest.mark.parametrize("constant", [None, 1e-6])
@pytest.mark.parametrize("turns", [1, 3])
def test_cascade(turns: int, constant: float | None) -> None:
    runs, sessions, dim, stages = 2, 2, 3, 2
    models = [build_model("cm_ntm", {"stages": stages, "slots": 3, "hidden": 2, "width": 4}, dim, s) for s in range(runs)]
    stacked = StackedCascade(models).double()
    shape = stacked.shape
    queries = random(runs, turns, sessions, dim).detach()
    memory = torch.full((runs, stages, 3, 4), constant or 0.0, dtype=torch.float64)
    weights = [
        random(runs, stages, 8, shape.inputs), random(runs, stages, 8), random(runs, stages, 4 * 4 + 12, 2),
        random(runs, stages, 28), random(runs, stages, 2), random(runs, stages, 2), random(runs, stages, 4),
        random(runs, stages, 2, 3), random(*memory.shape) if constant is None else memory,
    ]  # fmt: skip

    def run(derived: Tensor, *weights: Tensor) -> Tensor:
        trace = Trace.empty(shape, runs, turns, sessions, queries, constant)
        return CascadeFunction.apply(trace, StageByStage(), constant is None, queries, derived, *Weights(*weights))

    assert torch.autograd.gradcheck(run, (random(runs, turns, sessions, stages - 1, dim), *weights))


def test_addressing_by_content() -> None:
    class Address(torch.autograd.Function):
        @staticmethod
        def forward(ctx, memory, key, raw, previous):  # type: ignore[no-untyped-def]
            ctx.stand, ctx.memory, ctx.key = address(memory, row_norms(memory), key, raw, previous), memory, key
            return ctx.stand.weights

        @staticmethod
        def backward(ctx, d_weights):  # type: ignore[no-untyped-def]
            found = address_backward(d_weights, ctx.stand)
            memory = found.dots.unsqueeze(-1) * ctx.key.unsqueeze(-2) + found.rows.unsqueeze(-1) * ctx.memory
            key = (found.dots.unsqueeze(-1) * ctx.memory).sum(-2) + found.key_scale * ctx.key
            return memory, key, found.raw, found.previous

    previous = random(2, 3, 4).detach().softmax(-1).requires_grad_()
    assert torch.autograd.gradcheck(Address.apply, (random(2, 3, 4, 5), random(2, 3, 5), random(2, 3, 6), previous))


@pytest.mark.parametrize("zero", ["memory", "key"])
def test_addressing_has_a_finite_gradient_at_a_zero(zero: str) -> None:
    memory, key = random(1, 2, 3, 4).detach(), random(1, 2, 4).detach()
    (memory if zero == "memory" else key).zero_()
    previous = torch.full((1, 2, 3), 1 / 3, dtype=torch.float64)
    stand = address(memory, row_norms(memory), key, random(1, 2, 6).detach(), previous)
    found = address_backward(random(1, 2, 3).detach(), stand)
    assert all(bool(part.isfinite().all()) for part in found)
    assert bool(((stand.weights.sum(-1) - 1).abs() < 1e-12).all())


def test_write() -> None:
    class Write(torch.autograd.Function):
        @staticmethod
        def forward(ctx, memory, weights, erase, add):  # type: ignore[no-untyped-def]
            ctx.kept = (memory, weights, erase, add)
            return write(memory, weights, erase, add)

        @staticmethod
        def backward(ctx, d_new):  # type: ignore[no-untyped-def]
            found = write_backward(d_new, *ctx.kept, wanted=True)
            return found.memory, found.weights, found.erase, found.add

    assert torch.autograd.gradcheck(Write.apply, (random(2, 3, 4, 5), random(2, 3, 4), random(2, 3, 5), random(2, 3, 5, seed=1)))
