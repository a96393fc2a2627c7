"""Inference time of one session (paper Figure 8), measured; and the time of pending runs, predicted.

The prediction is the time of measured steps and evaluations times their numbers; it is too low for a small table.
"""

from __future__ import annotations

import json
import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from cache.files import write_json
from pipeline.core.device import cpu_threads, describe, seconds_of, training_threads
from pipeline.jobs.experiment import Experiment
from pipeline.jobs.identities import Run
from pipeline.training.backends.choice import choose_backend, measured_step
from pipeline.training.checkpoint import load_model
from pipeline.training.fit import epoch_batches
from pipeline.training.job import TrainRequest
from pipeline.training.models import MemoryModel
from pipeline.training.validate import inputs_of, recalls

ROUNDS = 30  # each round times every point once, so that other load on the machine affects all points equally
WARM_UP = 3
LEAST, SECONDS = 5, 0.2  # timed steps of each shape after a first one: at least so many, for at least so long


def timing_file(out: Path, ablation: str) -> Path:
    return out / "ablations" / ablation / "timing.json"


def read_timing(path: Path) -> dict[str, Any]:
    """Read the measurement in ``path``; {} if there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) and isinstance(found.get("runs"), dict) else {}


def measure_timing(experiment: Experiment, runs: Mapping[int, Run], path: Path) -> dict[str, Any]:
    """Time f_qry(1..T) -> f'_qry(1..T) of one session with the most turns, with one finished run per point number.

    Writes median and quartiles in milliseconds by run id to ``path``. Encoding a turn and ranking the gallery are equal
    for all points and not included.
    """
    folders = {number: experiment.folder(run) for number, run in runs.items()}
    models = {number: load_model(folder.path, experiment.device) for number, folder in folders.items()}
    session = experiment.test.lengths.argmax().reshape(1)
    given = {number: inputs_of(model, experiment.test)(session) for number, model in models.items()}
    found: dict[int, list[float]] = {number: [] for number in models}
    with torch.no_grad():
        for turn in range(WARM_UP + ROUNDS):
            for number, model in models.items():
                queries, _, lengths = given[number]
                seconds = seconds_of(partial(model, queries, lengths), experiment.device)
                if turn >= WARM_UP:
                    found[number].append(1e3 * seconds)
    quartiles = {folders[n].id: statistics.quantiles(values, n=4) for n, values in found.items()}
    device, machine = describe(experiment.device), f"{platform.machine()} {platform.system()}"
    record: dict[str, Any] = {"device": device, "machine": machine, "threads": torch.get_num_threads()}
    record |= {"torch": str(torch.__version__), "turns": int(experiment.test.lengths.max()), "rounds": ROUNDS}
    record["runs"] = {run: {"milliseconds": q[1], "low": q[0], "high": q[2]} for run, q in quartiles.items()}
    write_json(path, record)
    return record


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
