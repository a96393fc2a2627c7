"""Finite differences against each hand-written backward, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pipeline.training.cascade.cell import (
    MemoryRows,
    address,
    address_backward,
    lstm,
    lstm_backward,
    lstm_slopes,
    norm_slopes,
    old_memory_gradient,
    over_rows,
    write,
    write_backward,
)
from pipeline.training.cascade.parameters import StackedCascade
from pipeline.training.cascade.saved_activations import SavedActivations, Weights
from pipeline.training.cascade.stacked import CascadeFunction, LinearFunction
from pipeline.training.cascade.turn_torch import TorchTurn
from pipeline.training.models import build_model


def random(*sizes: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(sizes))
    return torch.randn(sizes, generator=generator, dtype=torch.float64).requires_grad_()


def test_linear() -> None:
    assert torch.autograd.gradcheck(LinearFunction.apply, (random(2, 3, 4), random(2, 5, 4)))


@pytest.mark.parametrize(
    ("turns", "fast", "constant"),
    [
        (3, True, None),
        (3, True, 1e-6),
        pytest.param(3, False, None, marks=pytest.mark.slow),
        pytest.param(1, False, 1e-6, marks=pytest.mark.slow),
    ],
)
def test_cascade(turns: int, fast: bool, constant: float | None) -> None:
    """``fast``: along random directions and not for each element. Each number of turns is there for one kind of memory."""
    runs, sessions, dim, stages = 2, 2, 3, 2
    models = [
        build_model("cm_ntm", {"stages": stages, "slots": 3, "hidden": 2, "width": 4}, dim, s) for s in range(runs)
    ]
    stacked = StackedCascade(models).double()
    shape = stacked.shape
    queries = random(runs, turns, sessions, dim).detach()
    memory = torch.full((runs, stages, 3, 4), constant or 0.0, dtype=torch.float64)
    weights = [
        random(runs, stages, 8, 4),
        random(runs, stages, 8, dim),
        random(runs, stages, 8, 4 + 2),
        random(runs, stages, 8),
        random(runs, stages, 2 + 1, 4 * 4 + 12),
        random(runs, stages, 4 + 2),
        random(runs, stages, 2),
        random(runs, stages, 2, 3),
        random(*memory.shape) if constant is None else memory,
    ]

    def run(derived: Tensor, *weights: Tensor) -> Tensor:
        saved = SavedActivations.empty(shape, runs, turns, sessions, queries, constant)
        return CascadeFunction.apply(saved, TorchTurn(), queries, derived, *Weights(*weights))

    inputs = (random(runs, turns, sessions, stages - 1, dim), *weights)
    assert torch.autograd.gradcheck(run, inputs, fast_mode=fast)


def test_controller() -> None:
    class Controller(torch.autograd.Function):
        @staticmethod
        def forward(ctx, raw, cell):  # type: ignore[no-untyped-def]
            gates, (new, squashed, hidden) = raw.clone(), cell.new_empty(3, *cell.shape)
            lstm(gates, cell, new, squashed, hidden)
            ctx.kept = gates, cell, squashed
            return hidden, new

        @staticmethod
        def backward(ctx, d_hidden, d_cell):  # type: ignore[no-untyped-def]
            gates, cell, squashed = ctx.kept
            slopes = torch.empty_like(gates)
            to_cell = lstm_slopes(gates, cell, squashed, slopes)
            d_old = lstm_backward(d_hidden, d_cell, gates.chunk(4, -1)[1], to_cell, slopes)
            return slopes, d_old

    assert torch.autograd.gradcheck(Controller.apply, (random(2, 3, 8), random(2, 3, 2)))


def test_addressing_by_content() -> None:
    class Address(torch.autograd.Function):
        @staticmethod
        def forward(ctx, memory, key, raw, previous):  # type: ignore[no-untyped-def]
            ctx.rows, ctx.key = MemoryRows.of(memory), key
            ctx.head = address(ctx.rows, key, raw, previous)
            return ctx.head.weights

        @staticmethod
        def backward(ctx, d_weights):  # type: ignore[no-untyped-def]
            raw = torch.empty_like(ctx.head.raw)
            found, rows = address_backward(d_weights, ctx.head, raw), ctx.rows
            pull = found.pull * norm_slopes(rows.norms)
            memory = found.dots.unsqueeze(-1) * ctx.key.unsqueeze(-2) + pull.unsqueeze(-1) * rows.memory
            return memory, over_rows(found.dots, rows.memory) + found.key_pull * ctx.key, raw, found.previous

    for slots in (1, 2, 4):
        previous = random(2, 3, slots).detach().softmax(-1).requires_grad_()
        assert torch.autograd.gradcheck(
            Address.apply, (random(2, 3, slots, 5), random(2, 3, 5), random(2, 3, 6), previous)
        )


@pytest.mark.parametrize("zero", ["memory", "key"])
def test_addressing_has_a_finite_gradient_at_a_zero(zero: str) -> None:
    memory, key = random(1, 2, 3, 4).detach(), random(1, 2, 4).detach()
    (memory if zero == "memory" else key).zero_()
    previous = torch.full((1, 2, 3), 1 / 3, dtype=torch.float64)
    rows = MemoryRows.of(memory)
    head, raw = address(rows, key, random(1, 2, 6).detach(), previous), torch.full((1, 2, 6), torch.nan).double()
    found = address_backward(random(1, 2, 3).detach(), head, raw)
    assert all(bool(part.isfinite().all()) for part in (*found, raw, norm_slopes(rows.norms)))
    assert bool(((head.weights.sum(-1) - 1).abs() < 1e-12).all())


@pytest.mark.parametrize("rows", [4, 1])
def test_write(rows: int) -> None:
    """``rows``: those that the memory comes with; one stands for four equal ones, and is not asked for its gradient."""

    class Write(torch.autograd.Function):
        @staticmethod
        def forward(ctx, memory, weights, erase, add):  # type: ignore[no-untyped-def]
            ctx.kept = (memory, weights, erase, add)
            return write(memory, weights, erase, add, memory.new_empty(2, 3, 4, 5))

        @staticmethod
        def backward(ctx, d_new):  # type: ignore[no-untyped-def]
            memory, weights, erase, add = ctx.kept
            scratch = torch.empty_like(d_new)
            found = write_backward(d_new, memory, weights, erase, add, scratch)
            wanted = ctx.needs_input_grad[0]
            return old_memory_gradient(d_new.clone(), weights, erase, scratch) if wanted else None, *found

    memory = random(2, 3, rows, 5).requires_grad_(rows == 4)
    assert torch.autograd.gradcheck(Write.apply, (memory, random(2, 3, 4), random(2, 3, 5), random(2, 3, 5, seed=1)))
