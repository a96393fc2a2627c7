"""Training steps of K models side by side; here each model by itself, by autograd: the reference."""

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
    """Steps K models, run k on its own sessions with its own settings; ``models`` hold the result after ``write_back``.

    Batch size, number of epochs and the average of weights are common to the runs; learning rate, decay, scale and
    clipping are each run's own.
    """

    capturable = False  # whether a step may be captured into a CUDA graph

    def __init__(self, models: Sequence[MemoryModel], features: SessionFeatures, trainings: Sequence[Training]):
        self.models, self.features, self.trainings = models, features, trainings
        self.objectives = [Objective(features, training) for training in trainings]
        self.optimizers = [
            adam(self.tensors_of(run), training, self.capturable) for run, training in enumerate(trainings)
        ]

    def tensors_of(self, run: int) -> list[Tensor]:
        """The trained tensors of run ``run``."""
        return list(self.models[run].parameters())

    def averaged(self) -> list[Tensor]:
        """What an average of weights is taken over: trained tensors and statistics of all runs."""
        return [t for model in self.models for t in (*model.parameters(), *model.buffers())]

    def step(self, index: Tensor, random: RunRandom, running: Sequence[bool], progress: float = 1.0) -> Tensor:
        """One step of each run on the sessions ``index`` (int64 [K, B]); the losses [K], on the device.

        A loss that is not finite changes no weight of its run. ``running``: a run that has ended is left as it is,
        and its loss is NaN.
        """
        losses = []
        for run, (model, objective) in enumerate(zip(self.models, self.objectives, strict=True)):
            if not running[run]:
                losses.append(torch.full((), torch.nan, device=index.device))
                continue
            model.train()
            for group in self.optimizers[run].param_groups:
                group["lr"] = self.trainings[run].learning_rate * model.rate(progress)
            with random.of(run):
                loss = objective(model, index[run], progress)
            if torch.isfinite(loss):
                self.optimizers[run].zero_grad()
                loss.backward()
                self._descend(run)
            losses.append(loss.detach())
        return torch.stack(losses)

    def _descend(self, run: int) -> None:
        """One step of Adam on the gradients of run ``run``."""
        if self.trainings[run].clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.tensors_of(run), self.trainings[run].clip_norm)
        self.optimizers[run].step()

    def write_back(self) -> None:
        """Put the weights into ``models``. The reference trains these themselves."""


def adam(tensors: Sequence[Tensor], training: Training, capturable: bool = False) -> torch.optim.Optimizer:
    """Adam (paper section 4.2); a weight decay, which the paper has none of, is decoupled from the gradient."""
    return torch.optim.AdamW(
        tensors,
        lr=training.learning_rate,
        weight_decay=training.weight_decay,
        fused=tensors[0].device.type in ("cpu", "cuda"),
        capturable=capturable,
    )
