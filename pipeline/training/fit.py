"""Training of memory models on cached session features: Adam, in-batch cross-entropy, metrics once per epoch."""

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
from pipeline.training.backends.base import Trainer
from pipeline.training.backends.choice import build_trainer
from pipeline.training.data import SessionFeatures
from pipeline.training.determinism import RunRandom, derive_seed, flushed_denormals, matmul_precision
from pipeline.training.errors import DivergenceError, TrainingError
from pipeline.training.models.base import MemoryModel
from pipeline.training.resume import RunState
from pipeline.training.sampling import HardGroups
from pipeline.training.validate import recalls

Metrics = dict[str, Any]
# Settings that must be equal for runs trained side by side.
COMMON = ("epochs", "batch_size", "early_stopping", "ema", "hard_groups", "matmul")


def fit(
    model: MemoryModel,
    features: SessionFeatures,
    training: Training,
    seed: int = 0,
    validation: SessionFeatures | None = None,
    backend: str = "reference",
) -> Iterator[Metrics]:
    """Train ``model`` in place and yield the metrics of each epoch (paper section 4.2 by default).

    The model and both sets of features are on one device. The same arguments give the same weights and metrics on the
    same machine with the same number of threads; random states and settings of the process do not change. Stop
    iterating to stop training: the model then has the weights of the last epoch. With ``training.early_stopping`` it
    has the weights of the best validation epoch once the iterator is exhausted.

    Yields:
        {"epoch", "loss" (mean over steps), "seconds", "validation": {"R@5", "R@8", "mean"} with a validation part,
        "best": the best epoch so far, with early stopping}. A model that is not trained by gradient yields one dict
        with epoch 0 and the chosen parameters.

    Raises:
        TrainingError: too few sessions, early stopping without a validation part, or an unsupported backend.
        DivergenceError: non-finite loss; the message names epoch and step.
    """
    for (outcome,) in fit_group([model], features, [training], [seed], validation, backend):
        if isinstance(outcome, DivergenceError):
            raise outcome
        assert outcome is not None
        yield outcome


def fit_group(
    models: Sequence[MemoryModel],
    features: SessionFeatures,
    trainings: Sequence[Training],
    seeds: Sequence[int],
    validation: SessionFeatures | None = None,
    backend: str = "reference",
    states: Sequence[RunState] = (),
    keep: Callable[[Callable[[int], RunState | None]], None] | None = None,
) -> Iterator[list[Metrics | DivergenceError | None]]:
    """Train K models of one shape side by side (see ``fit``); run k uses ``trainings[k]`` and ``seeds[k]``.

    Each run gets the same batches and random numbers as when it is trained alone. The settings in ``COMMON`` must be
    equal for all runs. Each epoch yields a list with one entry per run: its metrics, the error if it diverged in this
    epoch (the other runs continue), or None if it has ended.

    ``states``: one state per run, all of one epoch, to continue from. ``keep`` is called after each epoch but the last,
    once the caller has taken its outcomes, with a function that returns run k's state, None if the run has ended.

    Raises TrainingError as ``fit``, for runs with different ``COMMON`` settings, and for a state of another model.
    """
    if not all(model.trainable for model in models):
        yield [_fit_closed_form(model, features, validation) for model in models]
        return
    _check(features, trainings, validation)
    first = trainings[0]
    chosen = [model.fit_parameters(features if validation is None else validation) for model in models]
    trainer = build_trainer(backend, models, features, trainings)
    average = WeightAverage(trainer.averaged(), first.ema)
    runs = [_Run(model, first.early_stopping) for model in models]
    groups = HardGroups(features, first.hard_groups) if first.hard_groups else None
    for place, state in enumerate(states):
        _restore(trainer, average, runs[place], place, state)
    for epoch in range(1 + (states[0].epoch if states else 0), first.epochs + 1):
        started = time.perf_counter()
        random = RunRandom([derive_seed(seed, "epoch", epoch) for seed in seeds], features.device)
        with flushed_denormals(), matmul_precision(first.matmul):
            losses = _epoch(trainer, groups, random, runs, average, epoch)
        seconds = (time.perf_counter() - started) / sum(run.going for run in runs)
        outcomes: list[Metrics | DivergenceError | None] = []
        with average.applied():
            trainer.write_back()
            for run, loss, choice in zip(runs, losses, chosen, strict=True):
                outcomes.append(run.epoch(epoch, loss, seconds, choice, validation))
        if first.ema:
            trainer.write_back()  # the last step's weights again, in case the caller stops here
        yield outcomes
        if not any(run.going for run in runs):
            break
        if keep is not None and epoch < first.epochs:
            keep(partial(_state, trainer, average, runs, epoch))
    average.keep()
    trainer.write_back()
    for run in runs:
        run.end()


class _Run:
    """One run of a group: whether it is still training, and its best epoch so far."""

    def __init__(self, model: MemoryModel, patience: int | None):
        self.model, self.patience = model, patience
        self.going, self.error = True, None
        self.best, self.best_epoch = -math.inf, 0
        self.best_weights: dict[str, Any] | None = None

    def epoch(
        self, epoch: int, loss: float | DivergenceError, seconds: float, chosen: Metrics, validation: Any
    ) -> Metrics | DivergenceError | None:
        """Return the outcome of this epoch for the caller; the model has this epoch's weights."""
        if not self.going:
            return None
        if isinstance(loss, DivergenceError):
            self.going = False
            return loss
        metrics: Metrics = {"epoch": epoch, "loss": loss, "seconds": seconds}
        if chosen:
            metrics["chosen"] = chosen
        if validation is not None:
            metrics["validation"] = recalls(self.model, validation)
        if self.patience:
            if (mean := metrics["validation"]["mean"]) > self.best:
                self.best, self.best_epoch = mean, epoch
                self.best_weights = copy.deepcopy(self.model.state_dict())
            metrics["best"] = self.best_epoch
            self.going = epoch - self.best_epoch < self.patience
        return metrics

    def end(self) -> None:
        if self.best_weights is not None:
            self.model.load_state_dict(self.best_weights)
        self.model.eval()


def _state(trainer: Trainer, average: WeightAverage, runs: Sequence[_Run], epoch: int, run: int) -> RunState | None:
    """Return copies of everything in which run ``run`` after ``epoch`` differs from a new one; None if it has ended."""
    kept = runs[run]
    if not kept.going:
        return None
    averages = trainer.part(average.values, run) if average.values else []
    tensors = {f"weights.{n}": tensor for n, tensor in enumerate(trainer.part(_floats(trainer.averaged()), run))}
    tensors |= {f"average.{n}": tensor for n, tensor in enumerate(averages)}
    tensors |= {f"adam.{n}.{k}": v for n, moments in enumerate(trainer.moments(run)) for k, v in moments.items()}
    tensors |= {f"best.{name}": value for name, value in (kept.best_weights or {}).items()}
    copies = {name: value.detach().cpu().clone().contiguous() for name, value in tensors.items()}
    return RunState(epoch, kept.best, kept.best_epoch, tensors=copies)


@torch.no_grad()
def _restore(trainer: Trainer, average: WeightAverage, kept: _Run, run: int, state: RunState) -> None:

    def part(kind: str) -> dict[str, Tensor]:
        return {n.removeprefix(kind): value for n, value in state.tensors.items() if n.startswith(kind)}

    _copy(trainer.part(_floats(trainer.averaged()), run), part("weights."))
    if averages := part("average."):
        _copy(trainer.part(average.started(), run), averages)
    moments: list[dict[str, Tensor]] = [{} for _ in trainer.tensors_of(run)]
    for name, value in part("adam.").items():
        place, _, moment = name.partition(".")
        moments[int(place)][moment] = value
    trainer.set_moments(run, moments)
    kept.best, kept.best_epoch = state.best, state.best_epoch
    kept.best_weights = {n: v.to(trainer.features.device) for n, v in part("best.").items()} or None


def _floats(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [t.detach() for t in tensors if t.is_floating_point()]


def _copy(tensors: Sequence[Tensor], values: dict[str, Tensor]) -> None:
    shapes = [tuple(t.shape) for t in tensors]
    saved = [tuple(values[str(place)].shape) for place in range(len(values))]
    if shapes != saved:
        raise TrainingError(f"the saved state has tensors of shapes {saved}, the model {shapes}")
    for place, tensor in enumerate(tensors):
        tensor.copy_(values[str(place)])


def _epoch(
    trainer: Trainer, groups: HardGroups | None, random: RunRandom, runs: list[_Run], average: WeightAverage, epoch: int
) -> list[float | DivergenceError]:
    """Train one epoch, each run in its own session order; return per run its mean step loss or divergence error."""
    features, training = trainer.features, trainer.trainings[0]
    orders = []
    for run in range(len(runs)):
        with random.of(run):
            order = groups.order() if groups else torch.randperm(len(features))
            orders.append(epoch_batches(order, training.batch_size))
    sizes = [len(batch) for batch in orders[0]]  # the same for every run
    steps = torch.stack([torch.cat(order) for order in orders]).to(features.device).split(sizes, 1)  # moved once
    going = [run.going for run in runs]
    total = torch.zeros(len(runs), dtype=torch.float64, device=features.device)
    diverged: dict[int, tuple[int, float]] = {}
    watched = features.device.type == "cpu"  # on a GPU, reading the loss would synchronize at every step
    for number, index in enumerate(steps, start=1):
        losses = trainer.step(index, random, going, epoch / training.epochs)
        average.update()
        total += losses
        if watched:
            for run, loss in enumerate(losses.tolist()):
                if going[run] and not math.isfinite(loss):
                    diverged[run], going[run] = (number, loss), False
            if not any(going):
                break
    means = (total / len(steps)).tolist()
    for run, mean in enumerate(means):
        if not math.isfinite(mean):
            where = f"no finite loss in epoch {epoch}"
            if run in diverged:
                number, loss = diverged[run]
                where = f"the loss is {loss} at epoch {epoch}, step {number} of {len(steps)}"
            rate = trainer.trainings[run].learning_rate
            fix = f"lower training.learning_rate (now {rate:g}) or set training.clip_norm"
            means[run] = DivergenceError(f"{trainer.models[run].name}: {where}; {fix}")
    return means


def epoch_batches(order: Tensor, batch_size: int) -> tuple[Tensor, ...]:
    """Split the sessions, int64 [S], into batches, int64 [B] each.

    The last batch is smaller when the sizes do not divide. A last batch of one session is skipped, because it has no
    negatives and no batch statistics; the next epoch is ordered differently.
    """
    batches = order.split(batch_size)
    return batches[:-1] if len(batches[-1]) == 1 else batches


def _fit_closed_form(model: MemoryModel, features: SessionFeatures, validation: SessionFeatures | None) -> Metrics:
    started = time.perf_counter()
    chosen = model.fit_parameters(features if validation is None else validation)
    metrics: Metrics = {"epoch": 0, "chosen": chosen, "seconds": time.perf_counter() - started}
    if validation is not None and not model.dialogs:  # only test sessions are encoded as whole dialogs
        metrics["validation"] = recalls(model, validation)
    model.eval()
    return metrics


def _check(features: SessionFeatures, trainings: Sequence[Training], validation: SessionFeatures | None) -> None:
    if len(features) < 2:
        raise TrainingError(f"{len(features)} session(s) to train on: in-batch negatives need at least 2")
    for name in COMMON:
        values = {getattr(training, name) for training in trainings}
        if len(values) > 1:
            raise TrainingError(f"runs side by side need one training.{name}, got {sorted(map(str, values))}")
    if (patience := trainings[0].early_stopping) and validation is None:
        what = f"training.early_stopping = {patience} needs a validation part"
        raise TrainingError(f"{what}; set validation.fraction, e.g. 0.1")
