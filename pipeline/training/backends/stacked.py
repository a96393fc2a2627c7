"""Stacks of K models of one shape, except cascades: parameters [K, ...], one vmapped forward, autograd's backward."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn import functional as F

from pipeline.training.backends._plain import plain
from pipeline.training.cascade.graph import GraphTrainer
from pipeline.training.cascade.trainer import FastTrainer
from pipeline.training.data import SessionBatch
from pipeline.training.determinism import RunRandom, seeded
from pipeline.training.models.base import MemoryModel, dropped_by
from pipeline.training.objective import Step, losses_of


def why_not(models: Sequence[MemoryModel]) -> str:
    """Return why these models cannot be stacked, or "". ``stacks`` must be set in the model's own class."""
    kind = type(models[0])
    if not vars(kind).get("stacks") or any(type(model) is not kind for model in models):
        return f"{models[0].name} has no fast path"
    return ""


class _Call(nn.Module):
    """Module that calls ``of(model, *inputs)``, so that ``functional_call`` can run any method of the model."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model: Any = model
        self.of: Callable[..., Tensor]  # set before each call

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.of(self.model, *inputs)


class StackedModels(nn.Module):
    """Parameters and buffers of K models as tensors [K, ...]; ``write_to`` copies the parameters back."""

    def __init__(self, models: Sequence[MemoryModel]):
        super().__init__()
        self._call = [_Call(plain(copy.deepcopy(models[0])).train())]  # in a list: its own values are not trained
        parameters = [dict(model.named_parameters()) for model in models]
        buffers = [{n: b for n, b in model.named_buffers() if b.is_floating_point()} for model in models]
        self._names, self._kept = list(parameters[0]), list(buffers[0])
        self.values = nn.ParameterList(torch.stack([p[n].detach() for p in parameters]) for n in self._names)
        for place, name in enumerate(self._kept):
            self.register_buffer(f"kept_{place}", torch.stack([b[name] for b in buffers]))
        self._draws: dict[int, list[tuple[torch.Size, float]]] = {}

    def draw(self, step: Step) -> tuple[Tensor, ...]:
        """Draw the random numbers of one run's step, from torch's current random state.

        First the factors of all dropouts as one row [n], then those of the model's own loss.
        """
        batch, model, like = len(step.batch.lengths), self._call[0].model, step.batch.queries
        if batch not in self._draws:
            self._draws[batch] = found = []
            with seeded(0, like.device):  # finds the dropouts; restores the random state

                def note(values: Tensor, rate: float) -> Tensor:
                    found.append((values.shape, rate))
                    return values

                step = replace(step, drawn=model.draws(step))
                with torch.no_grad(), dropped_by(note):
                    _outcome(model, step)
        kept = [F.dropout(like.new_ones(shape), rate, True).flatten() for shape, rate in self._draws[batch]]
        return torch.cat(kept) if kept else like.new_empty(0), *model.draws(step)

    def forward(self, steps: Sequence[Step], drawn: Sequence[Tensor]) -> Tensor:
        """Return f' [K, B, T, D], or losses [K] for a model with its own loss. drawn: rows of ``draw``, each [K, ...]."""
        call, first = self._call[0], steps[0]

        def of(
            model: MemoryModel, queries: Tensor, targets: Tensor, lengths: Tensor, rows: Tensor, *own: Tensor
        ) -> Any:
            batch = SessionBatch(queries, targets, lengths)
            return _outcome(model, replace(first, batch=batch, rows=rows, drawn=own))

        def one(values: dict[str, Tensor], kept: Tensor, *inputs: Tensor) -> Tensor:
            with dropped_by(_given(kept)):
                return functional_call(call, values, inputs)

        call.of = of
        names = [f"model.{name}" for name in (*self._names, *self._kept)]
        values = dict(zip(names, (*self.values, *self.buffers()), strict=True))
        inputs = [torch.stack(parts) for parts in zip(*((*s.batch, s.rows) for s in steps), strict=True)]
        kept, *own = drawn
        return vmap(one)(values, kept, *inputs, *own)

    @torch.no_grad()
    def write_to(self, models: Sequence[MemoryModel]) -> None:
        """Copy run k's parameters to ``models[k]``. Buffers are not trained and do not change."""
        for run, model in enumerate(models):
            for parameter, value in zip(model.parameters(), self.values, strict=True):
                parameter.copy_(value[run])


def _outcome(model: Any, step: Step) -> Tensor:
    own = model.objective(step)
    return model(step.batch.queries, step.batch.lengths) if own is None else own


def _given(kept: Tensor) -> Callable[[Tensor, float], Tensor]:
    """Return a dropout source that multiplies with successive slices of ``kept`` [n]."""
    used = 0

    def source(values: Tensor, rate: float) -> Tensor:
        nonlocal used
        piece = kept[used : used + values.numel()].view(values.shape)
        used += values.numel()
        return values * piece

    return source


class _Stacking(FastTrainer):
    cascade: Any

    def _stack(self, models: Sequence[MemoryModel], ops: Any) -> StackedModels:
        return StackedModels(models)

    def _load(self, index: Tensor, random: RunRandom, progress: float) -> tuple[list[Step], tuple[Tensor, ...]]:
        """Load each run's sessions of ``index`` [K, B], and draw the random numbers of its step: rows of [K, ...]."""
        steps, drawn = [], []
        for run, (model, objective) in enumerate(zip(self.models, self.objectives, strict=True)):
            with random.of(run):
                steps.append(objective.step(model, index[run], progress))
                drawn.append(self.cascade.draw(steps[-1]))
        return steps, tuple(torch.stack(parts) for parts in zip(*drawn, strict=True))

    def _step_losses(self, steps: Sequence[Step], drawn: tuple[Tensor, ...], random: RunRandom | None = None) -> Tensor:
        """Return the differentiable losses [K]. With ``random``, each loss draws from the random state of its run."""
        self.forget_gradients()
        found, own = self.cascade(steps, drawn), type(self.models[0]).objective is not MemoryModel.objective
        return found if own else losses_of(self.objectives, steps, found, random)


class StackedTrainer(_Stacking):
    """Trainer of stacked models, equal to the reference on each run's own batches, including random numbers."""

    def _losses(self, index: Tensor, random: RunRandom, progress: float) -> Tensor:
        return self._step_losses(*self._load(index, random, progress), random)


class StackedGraphTrainer(_Stacking, GraphTrainer):
    """Trainer of stacked models that replays each step as one CUDA graph."""

    def _draw(self, index: Tensor, random: RunRandom, progress: float) -> tuple[Tensor, ...]:
        return self._load(index, random, progress)[1]
