"""Training jobs, from cached features to finished run folders; a finished run is not trained again."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from manifests.schema import Validation
from pipeline.core.device import cpu_threads, training_threads
from pipeline.training.backends.choice import BackendChoice, choose_backend
from pipeline.training.data import SessionFeatures
from pipeline.training.diagnostics import diagnose
from pipeline.training.errors import DivergenceError, RunError
from pipeline.training.fit import fit_group
from pipeline.training.models import MemoryModel, build_model
from pipeline.training.models.cm_ntm import CMNTM
from pipeline.training.resume import Pace, RunState
from pipeline.training.runs import DIAGNOSTICS, Run, RunFolder, RunIdentity, run_identity

DIAGNOSED_SESSIONS = 80  # the paper's batch size


@dataclass(frozen=True)
class TrainRequest:
    """One run to train: the root folder of runs, its identity, and the features of its train and validation sessions.

    ``validation_features`` is None without a validation part. All features are on the training device.
    """

    runs: Path
    dataset: str
    store_fingerprint: str
    run: Run
    features: SessionFeatures
    validation: Validation = field(default_factory=Validation)
    validation_features: SessionFeatures | None = None

    @property
    def identity(self) -> RunIdentity:
        """Identity of the run. Raises ManifestError for an unknown model or option."""
        held = self.validation_features
        sessions = (self.features.digest, self.validation, None if held is None else held.digest)
        return run_identity(self.run, self.store_fingerprint, *sessions)

    @property
    def folder(self) -> RunFolder:
        """Folder of the run, which may not exist yet."""
        return RunFolder.of(self.runs, self.dataset, self.run.model, self.identity.id)

    def build(self) -> MemoryModel:
        run, features = self.run, self.features
        return build_model(run.model, run.options, features.dim, run.seed).to(features.device)


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

    backend: see ``choose_backend``. threads: number of CPU threads, see ``training_threads``. diagnostics: also write
    diagnostics.jsonl, one line per epoch, for models with an addressed memory. force: also train finished runs again.
    spec: recorded in run.json. progress: called with each epoch's metrics. chosen: called with the backend once it is
    chosen. resumed: called with the epoch after which a run continues.
    """

    backend: str = "auto"
    threads: int | None = None
    diagnostics: bool = False
    force: bool = False
    spec: dict[str, Any] | None = None
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
    finished = [request.folder.state == "finished" and not execution.force for request in requests]
    todo = [request for request, done in zip(requests, finished, strict=True) if not done]
    with cpu_threads(training_threads(execution.threads)):
        trained = iter(_train(todo, execution) if todo else ())
    return [
        Trained(request.folder, request.folder.record()["finished"], reused=True) if done else next(trained)
        for request, done in zip(requests, finished, strict=True)
    ]


def _train(requests: Sequence[TrainRequest], execution: Execution) -> list[Trained | DivergenceError]:
    models = [request.build() for request in requests]
    choice = BackendChoice("reference")
    if models[0].trainable:
        trainings = [request.run.training for request in requests]
        choice = choose_backend(execution.backend, models, requests[0].features, trainings)
        execution.chosen(choice)
    pairs = zip(requests, models, strict=True)
    runs = [_Open(request, model, execution, choice.backend, len(requests)) for request, model in pairs]
    done: dict[_Open, Trained | DivergenceError] = {}
    for epoch in dict.fromkeys(run.after for run in runs):  # side by side: runs that start after the same epoch
        alike = [run for run in runs if run.after == epoch]
        done |= dict(zip(alike, _train_alike(alike, execution, choice.backend), strict=True))
    return [done[run] for run in runs]


def _train_alike(runs: Sequence[_Open], execution: Execution, backend: str) -> list[Trained | DivergenceError]:
    """Train runs that start after the same epoch side by side, and save their states whenever that is due."""
    pace, started = Pace(), time.perf_counter()

    def seconds() -> float:
        """Return the seconds since the start, per run."""
        return (time.perf_counter() - started) / len(runs)

    def save(state_of: Callable[[int], RunState | None]) -> None:
        if pace.due():
            begun = time.perf_counter()
            for place, run in enumerate(runs):
                if (state := state_of(place)) is not None:  # None: the run has ended
                    state.seconds = run.before + seconds()
                    run.folder.save_state(state, backend)
            pace.saved(begun)

    with ExitStack() as folders:
        for run in runs:
            run.open(folders)
            if run.after:
                execution.resumed(run.request, run.after)
            else:
                run.diagnose(0)
        asked, first = [run.request.run for run in runs], runs[0].request
        given = ([run.model for run in runs], first.features, [a.training for a in asked], [a.seed for a in asked])
        states = [run.state for run in runs if run.state is not None]  # of all runs, or of none
        for outcomes in fit_group(*given, first.validation_features, backend, states, save):
            for run, outcome in zip(runs, outcomes, strict=True):
                if outcome is not None:
                    run.take(outcome)
                if isinstance(outcome, dict):
                    begun = time.perf_counter()
                    execution.progress(run.request, outcome)
                    started += time.perf_counter() - begun  # messages and trackers are no training time
        return [run.finish(seconds()) for run in runs]


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
        details = {"device": str(request.features.device), "backend": backend, "runs_side_by_side": together}
        details |= {"threads": torch.get_num_threads(), "torch": str(torch.__version__)}
        if self.after:
            details["resumed_after_epoch"] = self.after
        about = {"id": identity.id, "dataset": request.dataset, "identity": identity.fields}
        self.record = {**about, "spec": execution.spec, "execution": details}

    def open(self, folders: ExitStack) -> None:
        """Take the folder, as one of ``folders``."""
        self.folder = folders.enter_context(self.folder.training(self.record, self.after))
        if len(lines := self.folder.metrics()) != self.after:
            raise RunError(f"{self.folder.path}: another process has trained this run; run the same command again")
        self.last = lines[-1] if lines else {}

    def take(self, outcome: dict[str, Any] | DivergenceError) -> None:
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
            found = diagnose(self.model, features, index, self.request.run.training)
            self.folder.append({"epoch": epoch, **found}, DIAGNOSTICS)

    def finish(self, seconds: float) -> Trained | DivergenceError:
        """Save the model and mark the run as finished, or as failed."""
        if self.error is not None:
            self.folder.fail(self.error)
            return self.error
        self.folder.save_model(self.model)
        features, last = self.request.features, self.last
        summary: dict[str, Any] = {key: last[key] for key in ("loss", "chosen", "best") if key in last}
        summary |= {"epochs": last["epoch"], "seconds": self.before + seconds}
        summary |= {"parameters": sum(p.numel() for p in self.model.parameters())}
        summary |= {"sessions": len(features), "skipped": len(features.skipped)}
        if "validation" in last:
            summary["validation"] = self.folder.metrics()[last.get("best", 0) - 1]["validation"]
        self.folder.finish(summary)
        return Trained(self.request.folder, summary, reused=False)
