"""Training steps of K models side by side. The reference: one model after another, with autograd."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from manifests.schema import Training
from pipeline.training.data import SessionFeatures
from pipeline.training.determinism import RunRandom
from pipeline.training.models.base import MemoryModel
from pipeline.training.objective import Objective


class Trainer:
    """Train K models, run k on its own sessions with its own settings; ``write_back`` copies the weights to ``models``.

    Batch size, epochs and weight averaging are common to all runs; learning rate, decay, scale and clipping are not.
    """

    capturable = False  # whether a step may be captured into a CUDA graph

    def __init__(self, models: Sequence[MemoryModel], features: SessionFeatures, trainings: Sequence[Training]):
        self.models, self.features, self.trainings = models, features, trainings
        self.objectives = [Objective(features, training) for training in trainings]
        groups: dict[tuple[Any, ...], dict[str, Any]] = {}
        for run, (model, training) in enumerate(zip(models, trainings, strict=True)):
            key = training.learning_rate, training.weight_decay, repr(model.options)
            group = groups.setdefault(key, {**adam_settings(training), "params": [], "model": model})
            group["params"] += self.tensors_of(run)
        self.optimizer = adam(list(groups.values()), self.capturable)

    def tensors_of(self, run: int) -> list[Tensor]:
        """Return the trained tensors of run ``run``."""
        return list(self.models[run].parameters())

    def averaged(self) -> list[Tensor]:
        """Return the tensors to average: trained tensors and statistics of all runs."""
        return [t for model in self.models for t in (*model.parameters(), *model.buffers())]

    def part(self, tensors: Sequence[Tensor], run: int) -> list[Tensor]:
        """Return the part of run ``run`` in tensors that are laid out as ``averaged()``, or as a choice of its kinds."""
        count = len(tensors) // len(self.models)
        return list(tensors[run * count : (run + 1) * count])

    def step(self, index: Tensor, random: RunRandom, running: Sequence[bool], progress: float = 1.0) -> Tensor:
        """Take one step of each run on the sessions ``index`` (int64 [K, B]); return the losses [K] on the device.

        A run with a non-finite loss keeps its weights, as one that is not ``running``, whose loss is NaN.
        """
        self.set_rates(progress)
        self.optimizer.zero_grad()
        losses = []
        for run, (model, objective) in enumerate(zip(self.models, self.objectives, strict=True)):
            if not running[run]:
                losses.append(torch.full((), torch.nan, device=index.device))
                continue
            model.train()
            with random.of(run):
                loss = objective(model, index[run], progress)
            if torch.isfinite(loss):
                loss.backward()
                self._clip(run)
            losses.append(loss.detach())
        self.optimizer.step()
        return torch.stack(losses)

    def set_rates(self, progress: float) -> None:
        """Set each run's learning rate for the epoch that ends at ``progress``."""
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * group["model"].rate(progress)

    def _clip(self, run: int) -> None:
        if (limit := self.trainings[run].clip_norm) is not None:
            torch.nn.utils.clip_grad_norm_(self.tensors_of(run), limit)

    def moments(self, run: int) -> list[dict[str, Tensor]]:
        """Return Adam's state of each trained tensor of run ``run``, {} before its first step."""
        return [self.optimizer.state.get(tensor, {}) for tensor in self.tensors_of(run)]

    def set_moments(self, run: int, moments: Sequence[dict[str, Tensor]]) -> None:
        """Set Adam's state of run ``run`` to copies of ``moments``."""
        for tensor, values in zip(self.tensors_of(run), moments, strict=True):
            fused = self.optimizer.defaults["fused"]  # else Adam counts its steps on the CPU
            state = {n: v.to(tensor.device if fused or n != "step" else "cpu", copy=True) for n, v in values.items()}
            self.optimizer.state[tensor] = state

    def write_back(self) -> None:
        """Copy the weights to ``models``. Does nothing here: the reference trains them in place."""


def adam_settings(training: Training) -> dict[str, float]:
    """Return the settings of a parameter group of ``adam``."""
    rate = training.learning_rate
    return {"lr": rate, "initial_lr": rate, "weight_decay": training.weight_decay}


def adam(groups: list[dict[str, Any]], capturable: bool = False) -> torch.optim.Optimizer:
    """Build Adam (paper section 4.2). Weight decay, not in the paper, is decoupled from the gradient.

    A tensor without a gradient keeps its value and its moments. On a GPU, a group is updated in a few launches.
    """
    fused = groups[0]["params"][0].device.type in ("cpu", "cuda")
    return torch.optim.AdamW(groups, fused=fused, capturable=capturable)
