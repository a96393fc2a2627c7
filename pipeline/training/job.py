"""Training jobs, from cached features to finished run folders; a finished run is not trained again."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from manifests.schema import Training, Validation
from pipeline.core.threads import cpu_threads, training_threads
from pipeline.training.backends import BackendChoice, choose_backend
from pipeline.training.data import SessionFeatures
from pipeline.training.diagnostics import diagnose
from pipeline.training.errors import DivergenceError
from pipeline.training.fit import fit_group
from pipeline.training.models import MemoryModel, build_model
from pipeline.training.models.cm_ntm import CMNTM
from pipeline.training.runs import RunFolder, RunIdentity, run_identity, sessions_digest

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
            sessions=_content(self.features),
            model=self.name,
            options=self.options,
            training=self.training,
            validation=self.validation,
            seed=self.seed,
            validation_sessions=None if held is None else _content(held),
        )

    @property
    def folder(self) -> RunFolder:
        """Folder of the run, which may not exist yet."""
        return RunFolder.of(self.runs, self.dataset, self.name, self.identity.id)

    def build(self) -> MemoryModel:
        """Return the model with its initial weights, on the device of the features."""
        return build_model(self.name, self.options, self.features.dim, self.seed).to(self.features.device)


def _content(features: SessionFeatures) -> str:
    """Return the digest of the sessions: of their content, or of ids and texts for features without a store."""
    return features.content or sessions_digest(features.sessions)


@dataclass(frozen=True)
class Trained:
    """A finished run. ``reused``: it had finished earlier, and nothing was computed."""

    folder: RunFolder
    summary: dict[str, Any]
    reused: bool


def train_runs(
    requests: Sequence[TrainRequest],
    *,
    spec: dict[str, Any] | None = None,
    backend: str = "auto",
    threads: int | None = None,
    again: bool = False,
    diagnostics: bool = False,
    progress: Callable[[TrainRequest, dict[str, Any]], None] | None = None,
    chosen: Callable[[BackendChoice], None] | None = None,
) -> list[Trained | DivergenceError]:
    """Train all requests that have not finished, side by side; ``again`` trains every request.

    All requests have the same features, and all models the same shape.

    Args:
        spec: recorded in run.json.
        backend: see ``choose_backend``.
        threads: number of CPU threads, see ``training_threads``.
        again: also train finished runs again.
        diagnostics: also write diagnostics.jsonl, one line per epoch, for models with an addressed memory.
        progress: called with each epoch's metrics.
        chosen: called with the backend once it is chosen.

    Returns:
        One entry per request: the finished run, or the error if it diverged (the other runs continue).

    Raises:
        The errors of ``build_model``, ``fit_group`` and ``RunFolder.training``. Metrics of earlier epochs then remain
        in metrics.jsonl, and the run counts as not finished.
    """
    found: dict[int, Trained | DivergenceError] = {}
    for place, request in enumerate(requests):
        if request.folder.state == "finished" and not again:
            found[place] = Trained(request.folder, request.folder.record()["finished"], reused=True)
    todo = [place for place in range(len(requests)) if place not in found]
    if todo:
        pending = [requests[place] for place in todo]
        with cpu_threads(training_threads(threads)):
            done = _train(pending, spec, backend, diagnostics, progress, chosen)
        found |= dict(zip(todo, done, strict=True))
    return [found[place] for place in range(len(requests))]


def _train(
    requests: Sequence[TrainRequest],
    spec: Any,
    backend: str,
    diagnostics: bool,
    progress: Any,
    chosen: Any,
) -> list[Trained | DivergenceError]:
    first, models = requests[0], [request.build() for request in requests]
    trainings = [request.training for request in requests]
    choice = BackendChoice("reference")
    if models[0].trainable:
        choice = choose_backend(backend, models, first.features, trainings)
        if chosen is not None:
            chosen(choice)
    started = time.perf_counter()
    runs = [_Open(request, model, spec, choice, len(requests)) for request, model in zip(requests, models, strict=True)]
    with ExitStack() as folders:
        for run in runs:
            run.folder = folders.enter_context(run.opened)
            if diagnostics:
                run.diagnose(0)
        seeds = [request.seed for request in requests]
        held = first.validation_features
        for outcomes in fit_group(models, first.features, trainings, seeds, held, choice.backend):
            for run, outcome in zip(runs, outcomes, strict=True):
                if outcome is None:
                    continue
                run.take(outcome, diagnostics)
                if progress is not None and not isinstance(outcome, DivergenceError):
                    progress(run.request, outcome)
        seconds = (time.perf_counter() - started) / len(runs)
        return [run.finish(seconds) for run in runs]


class _Open:
    """A run in training: its folder and the metrics of its last epoch."""

    def __init__(self, request: TrainRequest, model: MemoryModel, spec: Any, choice: BackendChoice, together: int):
        self.request, self.model, self.folder = request, model, request.folder
        self.last: dict[str, Any] = {}
        self.error: DivergenceError | None = None
        identity = request.identity
        self.opened = self.folder.training(
            {
                "id": identity.id,
                "dataset": request.dataset,
                "identity": identity.fields,
                "spec": spec,
                "execution": {
                    "device": str(request.features.device),
                    "backend": choice.backend,
                    "runs_side_by_side": together,
                    "threads": torch.get_num_threads(),
                    "torch": str(torch.__version__),
                },
            }
        )

    def take(self, outcome: dict[str, Any] | DivergenceError, diagnostics: bool) -> None:
        """Record an epoch's metrics, or the error that ended the run."""
        if isinstance(outcome, DivergenceError):
            self.error = outcome
            return
        self.last = outcome
        self.folder.append(outcome)
        if diagnostics:
            self.diagnose(outcome["epoch"])

    def diagnose(self, epoch: int) -> None:
        """Append the memory diagnostics after ``epoch`` (0: before training); does nothing for other models."""
        if isinstance(self.model, CMNTM):
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
        summary = {
            **{key: last[key] for key in ("loss", "chosen", "best") if key in last},
            "epochs": last["epoch"],
            "seconds": seconds,
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "sessions": len(features),
            "skipped": len(features.skipped),
        }
        if "validation" in last:
            summary["validation"] = self.folder.metrics()[last.get("best", 0) - 1]["validation"]
        self.folder.finish(summary)
        return Trained(self.request.folder, summary, reused=False)
