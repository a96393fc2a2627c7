"""Trainer of the fast path: K stacked cascades of one shape, with one forward and one hand-written backward pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from manifests.schema import Training
from pipeline.training.backends.base import Trainer
from pipeline.training.cascade.stacked import FastCascade
from pipeline.training.cascade.turn_ops import TurnOps
from pipeline.training.data import SessionFeatures
from pipeline.training.determinism import RunRandom
from pipeline.training.models.base import MemoryModel
from pipeline.training.models.cm_ntm import CMNTM
from pipeline.training.objective import losses_of


def why_not(models: Sequence[MemoryModel]) -> str:
    """Return why the fast path cannot train these models, or ""."""
    if not all(isinstance(model, CMNTM) for model in models):
        return f"{models[0].name} has no fast path"
    own = ("_forward", "_features", "_turn", "initial_state")
    if any(getattr(type(model), name) is not getattr(CMNTM, name) for model in models for name in own):
        return f"{models[0].name} computes something else than the cascade"
    return ""


class FastTrainer(Trainer):
    """Trainer equal to the reference on each run's own batches, including random numbers (tests compare the two)."""

    def __init__(
        self,
        models: Sequence[MemoryModel],
        features: SessionFeatures,
        trainings: Sequence[Training],
        ops: TurnOps | None = None,
    ):
        self.cascade = self._stack(models, ops).train()
        self._stacked = [p for p in self.cascade.parameters() if p.requires_grad]
        # Views of each run's part: settings and ends of other runs must not affect it.
        self._parts = [[p.detach()[run] for p in self._stacked] for run in range(len(models))]
        super().__init__(models, features, trainings)

    def _stack(self, models: Sequence[Any], ops: TurnOps | None) -> Any:
        """Return all runs as one module with parameters [K, ...]."""
        return FastCascade(models, ops)

    def tensors_of(self, run: int) -> list[Tensor]:
        return self._parts[run]

    def averaged(self) -> list[Tensor]:
        return [*self._stacked, *self.cascade.buffers()]

    def part(self, tensors: Sequence[Tensor], run: int) -> list[Tensor]:
        return [tensor[run] for tensor in tensors]

    def step(self, index: Tensor, random: RunRandom, running: Sequence[bool], progress: float = 1.0) -> Tensor:
        self.set_rates(progress)
        losses = self._losses(index, random, progress)
        self._backward(losses)
        values = losses.detach()
        finite = values.isfinite().tolist()
        self._descend([going and good for going, good in zip(running, finite, strict=True)])
        for run, going in enumerate(running):
            if not going:
                values[run] = torch.nan
        return values

    def _losses(self, index: Tensor, random: RunRandom, progress: float) -> Tensor:
        """Return the differentiable losses [K] of the sessions ``index`` [K, B]."""
        steps, inputs = [], []
        for run, (model, objective) in enumerate(zip(self.models, self.objectives, strict=True)):
            with random.of(run):
                steps.append(objective.step(model, index[run], progress))
                inputs.append(F.dropout(steps[-1].batch.queries, self.cascade.options.dropout, True))
        predicted = self._predicted(torch.stack([step.batch.queries for step in steps]), torch.stack(inputs))
        return losses_of(self.objectives, steps, predicted, random)

    def _predicted(self, queries: Tensor, inputs: Tensor) -> Tensor:
        """Return f' of all runs from the queries, before and after dropout; all [K, B, T, D]."""
        self.forget_gradients()
        return self.cascade(queries, inputs)

    def forget_gradients(self) -> None:
        """Free the gradients of the previous step, so that a forward pass can use their memory."""
        for parameter in self._stacked:
            parameter.grad = None

    def _backward(self, losses: Tensor) -> None:
        """Compute the gradients of the losses [K], and set each run's part for its optimizer."""
        losses.sum().backward()
        for parameter, *parts in zip(self._stacked, *self._parts, strict=True):
            for run, part in enumerate(parts):
                part.grad = None if parameter.grad is None else parameter.grad[run]

    def _descend(self, running: Sequence[bool]) -> None:
        """Take one step of Adam with the gradients of the runs that are ``running``."""
        for run, going in enumerate(running):
            if going:
                self._clip(run)
                continue
            for part in self._parts[run]:
                part.grad = None
        self.optimizer.step()

    def write_back(self) -> None:
        self.cascade.write_to(self.models)
