"""Training steps of K models side by side. The reference: one model after another, with autograd."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from manifests.schema import Training
from pipeline.training.data import SessionFeatures
from pipeline.training.models.base import MemoryModel
from pipeline.training.objective import Objective
from pipeline.training.randomness import RunRandom


class Trainer:
    """Train K models, run k on its own sessions with its own settings; ``write_back`` copies the weights to ``models``.

    Batch size, number of epochs and weight averaging are common to all runs; learning rate, decay, scale and clipping
    are set per run.
    """

    capturable = False  # whether a step may be captured into a CUDA graph

    def __init__(self, models: Sequence[MemoryModel], features: SessionFeatures, trainings: Sequence[Training]):
        self.models, self.features, self.trainings = models, features, trainings
        self.objectives = [Objective(features, training) for training in trainings]
        self.optimizers = [
            adam(self.tensors_of(run), training, self.capturable) for run, training in enumerate(trainings)
        ]

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

        A run with a non-finite loss keeps its weights. A run that is not ``running`` is not changed, and its loss is
        NaN.
        """
        self.set_rates(progress)
        losses = []
        for run, (model, objective) in enumerate(zip(self.models, self.objectives, strict=True)):
            if not running[run]:
                losses.append(torch.full((), torch.nan, device=index.device))
                continue
            model.train()
            with random.of(run):
                loss = objective(model, index[run], progress)
            if torch.isfinite(loss):
                self.optimizers[run].zero_grad()
                loss.backward()
                self._descend(run)
            losses.append(loss.detach())
        return torch.stack(losses)

    def set_rates(self, progress: float) -> None:
        """Set each run's learning rate for the epoch that ends at ``progress``."""
        for model, training, optimizer in zip(self.models, self.trainings, self.optimizers, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = training.learning_rate * model.rate(progress)

    def _descend(self, run: int) -> None:
        """Take one step of Adam with the gradients of run ``run``."""
        if (limit := self.trainings[run].clip_norm) is not None:
            torch.nn.utils.clip_grad_norm_(self.tensors_of(run), limit)
        self.optimizers[run].step()

    def write_back(self) -> None:
        """Copy the weights to ``models``. Does nothing here: the reference trains them in place."""


def adam(tensors: Sequence[Tensor], training: Training, capturable: bool = False) -> torch.optim.Optimizer:
    """Build Adam (paper section 4.2). Weight decay, not in the paper, is decoupled from the gradient."""
    return torch.optim.AdamW(
        tensors,
        lr=training.learning_rate,
        weight_decay=training.weight_decay,
        fused=tensors[0].device.type in ("cpu", "cuda"),
        capturable=capturable,
    )
