"""Fits one memory model to cached session features: Adam, in-batch cross-entropy, one line of metrics an epoch."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from manifests.schema import Training
from pipeline.training.average import WeightAverage
from pipeline.training.data import SessionFeatures
from pipeline.training.determinism import derive_seed, flushed_denormals, seeded
from pipeline.training.errors import DivergenceError, TrainingError
from pipeline.training.hard_groups import HardGroups
from pipeline.training.models.base import MemoryModel
from pipeline.training.objective import Objective
from pipeline.training.validate import recalls


def fit(
    model: MemoryModel,
    features: SessionFeatures,
    training: Training,
    seed: int = 0,
    validation: SessionFeatures | None = None,
) -> Iterator[dict[str, Any]]:
    """Train ``model`` in place; yields the metrics of each epoch as it ends (paper section 4.2 by default).

    The model and both sets of features are on one device. The same arguments give the same weights and metrics on the
    same machine with the same number of threads; random states and settings of the process are left alone. Stop
    iterating to stop training: the model then holds the last epoch's weights. With ``training.early_stopping`` it
    holds those of the best validation epoch once the iterator is exhausted.

    Yields:
        {"epoch", "loss" (mean over steps), "seconds", "validation": {"R@5", "R@8", "mean"} where there is a validation
        part, "best": the best epoch so far with early stopping}. A model that is not trained by gradient yields one
        line, epoch 0, with what it chose.

    Raises:
        TrainingError: too few sessions, or early stopping without a validation part.
        DivergenceError: a loss that is not finite, naming epoch and step.
    """
    _check(features, training, validation)
    if not model.trainable:
        yield _fit_closed_form(model, features, validation)
        return
    chosen = model.fit_parameters(features if validation is None else validation)
    optimizer, objective = adam(model, training), Objective(features, training)
    groups = HardGroups(features, training.hard_groups) if training.hard_groups else None
    average = WeightAverage(model, training.ema)
    patience, best, best_weights = training.early_stopping, (-math.inf, 0), None
    for epoch in range(1, training.epochs + 1):
        started = time.perf_counter()
        with seeded(derive_seed(seed, "epoch", epoch), features.device), flushed_denormals():
            batches = groups.batches if groups else partial(epoch_batches, len(features))
            loss = _epoch(model, objective, optimizer, batches(training.batch_size), epoch, average)
        metrics: dict[str, Any] = {"epoch": epoch, "loss": loss, "seconds": time.perf_counter() - started}
        if chosen:
            metrics["chosen"] = chosen
        if validation is not None:
            metrics["validation"] = recalls(average.model, validation)
        if patience:
            if metrics["validation"]["mean"] > best[0]:
                best, best_weights = (metrics["validation"]["mean"], epoch), copy.deepcopy(average.model.state_dict())
            metrics["best"] = best[1]
        yield metrics
        if patience and epoch - best[1] >= patience:
            break
    if best_weights is not None or training.ema:
        model.load_state_dict(best_weights if best_weights is not None else average.model.state_dict())
    model.eval()


def adam(model: MemoryModel, training: Training) -> torch.optim.Optimizer:
    """Adam (paper section 4.2); a weight decay, which the paper has none of, is decoupled from the gradient."""
    fused = next(model.parameters()).device.type in ("cpu", "cuda")
    return torch.optim.AdamW(
        model.parameters(), lr=training.learning_rate, weight_decay=training.weight_decay, fused=fused
    )


def _epoch(
    model: MemoryModel,
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    batches: Sequence[Tensor],
    epoch: int,
    average: WeightAverage,
) -> float:
    """One pass over the sessions, batch by batch; the mean loss of its steps."""
    model.train()
    total, progress = 0.0, epoch / objective.training.epochs
    for group in optimizer.param_groups:
        group["lr"] = objective.training.learning_rate * model.rate(progress)
    for step, index in enumerate(batches, start=1):
        loss = float(training_step(model, objective, optimizer, index.to(objective.features.device), progress))
        if not math.isfinite(loss):
            raise DivergenceError(
                f"{model.name}: the loss is {loss} at epoch {epoch}, step {step} of {len(batches)}; "
                f"lower training.learning_rate (now {objective.training.learning_rate:g}) or set training.clip_norm"
            )
        average.update()
        total += loss
    return total / len(batches)


def training_step(
    model: MemoryModel,
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    index: Tensor,
    progress: float = 1.0,
) -> Tensor:
    """One step on the sessions ``index`` (int64 [B]); its loss. A loss that is not finite changes no weight."""
    loss = objective(model, index, progress)
    if torch.isfinite(loss):
        optimizer.zero_grad()
        loss.backward()
        if objective.training.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), objective.training.clip_norm)
        optimizer.step()
    return loss.detach()


def epoch_batches(sessions: int, batch_size: int) -> tuple[Tensor, ...]:
    """A random order of the sessions, cut into batches, int64 [B] each, from torch's current random state.

    The last batch is smaller when the sizes do not divide. A last batch of one session is left out: it has no negative
    and no batch statistics. The next epoch's order puts another session there.
    """
    batches = torch.randperm(sessions).split(batch_size)
    return batches[:-1] if len(batches[-1]) == 1 else batches


def measured_step(model: MemoryModel, features: SessionFeatures, training: Training) -> Callable[[], None]:
    """A full training step on a copy of the model, to measure with; the model itself is not touched."""
    model = copy.deepcopy(model)
    if not model.trainable:
        return lambda: None
    optimizer, objective = adam(model, training), Objective(features, training)
    index = torch.arange(min(training.batch_size, len(features)), device=features.device)

    def step() -> None:
        with seeded(0, features.device), flushed_denormals():
            training_step(model.train(), objective, optimizer, index)

    return step


def _fit_closed_form(
    model: MemoryModel, features: SessionFeatures, validation: SessionFeatures | None
) -> dict[str, Any]:
    started = time.perf_counter()
    chosen = model.fit_parameters(features if validation is None else validation)
    metrics: dict[str, Any] = {"epoch": 0, "chosen": chosen, "seconds": time.perf_counter() - started}
    if validation is not None:
        metrics["validation"] = recalls(model, validation)
    model.eval()
    return metrics


def _check(features: SessionFeatures, training: Training, validation: SessionFeatures | None) -> None:
    if len(features) < 2:
        raise TrainingError(f"{len(features)} session(s) to train on: in-batch negatives need at least 2")
    if training.early_stopping and validation is None:
        raise TrainingError(
            f"training.early_stopping = {training.early_stopping} needs a validation part; set validation.fraction, "
            "e.g. 0.1"
        )
