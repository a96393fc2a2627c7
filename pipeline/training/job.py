"""Training jobs, from cached features to finished run folders; a finished run is not trained again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from manifests.schema import Training, Validation
from pipeline.core.device import cpu_threads, training_threads
from pipeline.training.backends.choice import BackendChoice, choose_backend
from pipeline.training.data import SessionFeatures
from pipeline.training.diagnostics import diagnose
from pipeline.training.errors import DivergenceError, RunError
from pipeline.training.fit import fit_group
from pipeline.training.models import MemoryModel, build_model
from pipeline.training.models.cm_ntm import CMNTM
from pipeline.training.resume import Pace, RunState
from pipeline.training.runs import RunFolder, RunIdentity, run_identity

NO_VALIDATION = Validation()
DIAGNOSED_SESSIONS = 80  # the paper's batch size


@dataclass(frozen=True)
class TrainRequest:
    """One run to train: the root folder of runs, its identity, and the features of its train and validation sessions.

    ``validation_features`` is None without a validation part. All features are on the training device.
    """

    runs: Path
    dataset: str
    store_fingerprint: str
    name: str
    options: dict[str, Any]
    features: SessionFeatures
    training: Training
    seed: int = 0
    validation: Validation = NO_VALIDATION
    validation_features: SessionFeatures | None = None

    @property
    def identity(self) -> RunIdentity:
        """Identity of the run. Raises ManifestError for an unknown model or option."""
        held = self.validation_features
        return run_identity(
            store_fingerprint=self.store_fingerprint,
            sessions=self.features.digest,
            model=self.name,
            options=self.options,
            training=self.training,
            validation=self.validation,
            seed=self.seed,
            validation_sessions=None if held is None else held.digest,
        )

    @property
    def folder(self) -> RunFolder:
        """Folder of the run, which may not exist yet."""
        return RunFolder.of(self.runs, self.dataset, self.name, self.identity.id)

    def build(self) -> MemoryModel:
        """Return the model with its initial weights, on the device of the features."""
        return build_model(self.name, self.options, self.features.dim, self.seed).to(self.features.device)


@dataclass(frozen=True)
class Trained:
    """A finished run. ``reused``: it had finished earlier, and nothing was computed."""

    folder: RunFolder
    summary: dict[str, Any]
    reused: bool


def _ignore(*_: Any) -> None:
    pass


@dataclass(frozen=True)
class Execution:
    """How runs are trained; no part of their identity.

    spec: recorded in run.json. backend: see ``choose_backend``. threads: number of CPU threads, see
    ``training_threads``. again: also train finished runs again. diagnostics: also write diagnostics.jsonl, one line per
    epoch, for models with an addressed memory. progress: called with each epoch's metrics. chosen: called with the
    backend once it is chosen. resumed: called with the epoch after which a run continues.
    """

    spec: dict[str, Any] | None = None
    backend: str = "auto"
    threads: int | None = None
    again: bool = False
    diagnostics: bool = False
    progress: Callable[[TrainRequest, dict[str, Any]], None] = _ignore
    chosen: Callable[[BackendChoice], None] = _ignore
    resumed: Callable[[TrainRequest, int], None] = _ignore


PLAIN = Execution()


def train_runs(requests: Sequence[TrainRequest], execution: Execution = PLAIN) -> list[Trained | DivergenceError]:
    """Train all requests that have not finished, side by side; an interrupted run continues after its last saved epoch.

    All requests have the same features, and all models the same shape. Returns one entry per request: the finished
    run, or the error if it diverged (the other runs continue).

    Raises the errors of ``build_model``, ``fit_group`` and ``RunFolder.training``. Metrics of earlier epochs then
    remain in metrics.jsonl, and the run counts as not finished.
    """
    found: dict[int, Trained | DivergenceError] = {}
    for place, request in enumerate(requests):
        if request.folder.state == "finished" and not execution.again:
            found[place] = Trained(request.folder, request.folder.record()["finished"], reused=True)
    todo = [place for place in range(len(requests)) if place not in found]
    if todo:
        with cpu_threads(training_threads(execution.threads)):
            done = _train([requests[place] for place in todo], execution)
        found |= dict(zip(todo, done, strict=True))
    return [found[place] for place in range(len(requests))]


def _train(requests: Sequence[TrainRequest], execution: Execution) -> list[Trained | DivergenceError]:
    models = [request.build() for request in requests]
    choice = BackendChoice("reference")
    if models[0].trainable:
        trainings = [request.training for request in requests]
        choice = choose_backend(execution.backend, models, requests[0].features, trainings)
        execution.chosen(choice)
    pairs = zip(requests, models, strict=True)
    runs = [_Open(request, model, execution, choice.backend, len(requests)) for request, model in pairs]
    done: dict[int, Trained | DivergenceError] = {}
    for epoch in dict.fromkeys(run.after for run in runs):  # side by side: runs that start after the same epoch
        alike = [place for place, run in enumerate(runs) if run.after == epoch]
        found = _train_alike([runs[place] for place in alike], execution, choice.backend)
        done |= dict(zip(alike, found, strict=True))
    return [done[place] for place in range(len(runs))]


def _train_alike(runs: Sequence[_Open], execution: Execution, backend: str) -> list[Trained | DivergenceError]:
    """Train runs that start after the same epoch side by side."""
    saving = _Saving(runs, backend)
    with ExitStack() as folders:
        for run in runs:
            run.open(folders)
            if run.after:
                execution.resumed(run.request, run.after)
        for outcomes in _epochs(runs, backend, saving):
            for run, outcome in zip(runs, outcomes, strict=True):
                if outcome is not None:
                    run.take(outcome)
                if isinstance(outcome, dict):
                    begun = time.perf_counter()
                    execution.progress(run.request, outcome)
                    saving.started += time.perf_counter() - begun  # messages and trackers are no training time
        return [run.finish(saving.seconds) for run in runs]


def _epochs(
    runs: Sequence[_Open], backend: str, saving: _Saving
) -> Iterator[Sequence[dict[str, Any] | DivergenceError | None]]:
    """Train the runs; yield the outcome of each after every epoch, None for a run that has ended."""
    states = [run.state for run in runs if run.state is not None]  # of all runs, or of none
    if not states:
        for run in runs:
            run.diagnose(0)
    requests = [run.request for run in runs]
    return fit_group(
        [run.model for run in runs],
        requests[0].features,
        [request.training for request in requests],
        [request.seed for request in requests],
        requests[0].validation_features,
        backend,
        states,
        saving,
    )


class _Saving:
    """Saves the states of runs trained side by side, whenever it is due."""

    def __init__(self, runs: Sequence[_Open], backend: str):
        self.runs, self.backend, self.pace, self.started = runs, backend, Pace(), time.perf_counter()

    @property
    def seconds(self) -> float:
        """Seconds since the start, per run."""
        return (time.perf_counter() - self.started) / len(self.runs)

    def __call__(self, state_of: Callable[[int], RunState | None]) -> None:
        """Save the states; ``state_of``: place of a run -> its state, None for a run that has ended."""
        if self.pace.due():
            begun = time.perf_counter()
            for place, run in enumerate(self.runs):
                if (state := state_of(place)) is not None:
                    run.save_state(state, self.backend, self.seconds)
            self.pace.saved(begun)


class _Open:
    """A run in training: its folder, the epoch after which it starts, and the metrics of its last epoch."""

    def __init__(self, request: TrainRequest, model: MemoryModel, execution: Execution, backend: str, together: int):
        """Set up a run that is trained on ``backend`` with ``together`` runs side by side, itself included."""
        self.request, self.model, self.folder = request, model, request.folder
        self.diagnostics = execution.diagnostics and isinstance(model, CMNTM)
        self.state = self.folder.load_state(backend, self.diagnostics)
        self.after = 0 if self.state is None else self.state.epoch
        self.before = 0.0 if self.state is None else self.state.seconds  # seconds of an interrupted training
        self.last: dict[str, Any] = {}
        self.error: DivergenceError | None = None
        identity = request.identity
        details = {
            "device": str(request.features.device),
            "backend": backend,
            "runs_side_by_side": together,
            "threads": torch.get_num_threads(),
            "torch": str(torch.__version__),
        }
        if self.after:
            details["resumed_after_epoch"] = self.after
        self.record = {
            "id": identity.id,
            "dataset": request.dataset,
            "identity": identity.fields,
            "spec": execution.spec,
            "execution": details,
        }

    def open(self, folders: ExitStack) -> None:
        """Take the folder, as one of ``folders``."""
        self.folder = folders.enter_context(self.folder.training(self.record, self.after))
        if len(lines := self.folder.metrics()) != self.after:
            raise RunError(f"{self.folder.path}: another process has trained this run; run the same command again")
        self.last = lines[-1] if lines else {}

    def save_state(self, state: RunState, backend: str, seconds: float) -> None:
        """Save the state of an epoch; ``seconds``: spent since this process began with the run."""
        state.seconds = self.before + seconds
        self.folder.save_state(state, backend)

    def take(self, outcome: dict[str, Any] | DivergenceError) -> None:
        """Record an epoch's metrics, or the error that ended the run."""
        if isinstance(outcome, DivergenceError):
            self.error = outcome
            return
        self.last = outcome
        self.folder.append(outcome)
        self.diagnose(outcome["epoch"])

    def diagnose(self, epoch: int) -> None:
        """Append the memory diagnostics after ``epoch`` (0: before training), if they are asked for."""
        if self.diagnostics:
            assert isinstance(self.model, CMNTM)
            features = self.request.features
            index = torch.arange(min(DIAGNOSED_SESSIONS, len(features)), device=features.device)
            found = diagnose(self.model, features, index, self.request.training)
            self.folder.append_diagnosis({"epoch": epoch, **found})

    def finish(self, seconds: float) -> Trained | DivergenceError:
        """Save the model and mark the run as finished, or as failed."""
        if self.error is not None:
            self.folder.fail(self.error)
            return self.error
        self.folder.save_model(self.model)
        features, last = self.request.features, self.last
        summary: dict[str, Any] = {
            **{key: last[key] for key in ("loss", "chosen", "best") if key in last},
            "epochs": last["epoch"],
            "seconds": self.before + seconds,
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "sessions": len(features),
            "skipped": len(features.skipped),
        }
        if "validation" in last:
            summary["validation"] = self.folder.metrics()[last.get("best", 0) - 1]["validation"]
        self.folder.finish(summary)
        return Trained(self.request.folder, summary, reused=False)
