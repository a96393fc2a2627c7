"""Predicted time of pending runs: measured steps and evaluations times their numbers; too low for a small table."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from pipeline.core.device import cpu_threads, seconds_of, training_threads
from pipeline.training.backends.choice import choose_backend, measured_step
from pipeline.training.fit import epoch_batches
from pipeline.training.job import TrainRequest
from pipeline.training.models import MemoryModel
from pipeline.training.validate import recalls

LEAST, SECONDS = 5, 0.2  # timed steps of each shape after a first one: at least so many, for at least so long


def training_seconds(requests: Sequence[TrainRequest], together: bool) -> tuple[float, float]:
    """Return (seconds to train ``requests``, seconds per step), for runs of one shape. Steps are taken on copies.

    The first is an upper bound with early stopping. ``together``: the runs train side by side, in the same steps. A
    model without gradient training is fitted once, and has steps of 0 s.
    """
    first, number = requests[0], len(requests)
    models = [request.build() for request in requests]
    model, fit, held, training = models[0], first.features, first.validation_features, first.run.training
    with cpu_threads(training_threads()):
        fitting = seconds_of(lambda: model.fit_parameters(fit if held is None else held), fit.device)
        if not model.trainable:
            return number * fitting, 0.0
        models = models if together else models[:1]
        trainings = [request.run.training for request in requests[: len(models)]]
        choice = choose_backend("auto", models, fit, trainings)
        step = mean_seconds(measured_step(models, fit, trainings, choice.backend), fit.device)
        checking = 0.0 if held is None else seconds_of(lambda: recalls(model, held), fit.device)
    steps = len(epoch_batches(torch.arange(len(fit)), training.batch_size)) * (1 if together else number)
    return number * fitting + training.epochs * (steps * step + number * checking), step


def untrained(request: TrainRequest) -> MemoryModel:
    """Return the model with its initial weights, and with the parameters that are not trained by gradient."""
    model = request.build()
    held = request.validation_features
    model.fit_parameters(request.features if held is None else held)
    return model


def mean_seconds(step: Callable[[], object], device: torch.device) -> float:
    """Return the mean time of ``step`` after a first call, which may compile or allocate."""
    step()
    spent: list[float] = []
    while len(spent) < LEAST or sum(spent) < SECONDS:
        spent.append(seconds_of(step, device))
    return sum(spent) / len(spent)
