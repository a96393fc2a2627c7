"""One run from cached features to a finished run folder; a finished run is never trained twice."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from manifests.schema import Training, Validation
from pipeline.training.checkpoint import save_model
from pipeline.training.data import SessionFeatures
from pipeline.training.fit import fit, measured_step
from pipeline.training.models import build_model
from pipeline.training.runs import RunFolder, RunIdentity, run_identity, sessions_digest
from pipeline.training.threads import ThreadChoice, choose_threads

NO_VALIDATION = Validation()


@dataclass(frozen=True)
class Trained:
    """A finished run. ``reused``: it had finished before, and nothing was computed."""

    folder: RunFolder
    summary: dict[str, Any]
    reused: bool


def run_folder(
    runs: Path,
    dataset: str,
    store_fingerprint: str,
    name: str,
    options: dict[str, Any],
    features: SessionFeatures,
    training: Training,
    seed: int = 0,
    validation: Validation = NO_VALIDATION,
    validation_features: SessionFeatures | None = None,
) -> RunFolder:
    """Where ``train_run`` with the same arguments keeps its run; the folder need not exist yet."""
    identity = _identity(name, options, store_fingerprint, features, training, seed, validation, validation_features)
    return RunFolder.of(runs, dataset, name, identity.id)


def _identity(
    name: str,
    options: dict[str, Any],
    store_fingerprint: str,
    features: SessionFeatures,
    training: Training,
    seed: int,
    validation: Validation,
    validation_features: SessionFeatures | None,
) -> RunIdentity:
    return run_identity(
        store_fingerprint=store_fingerprint,
        sessions=sessions_digest(features.sessions),
        model=name,
        options=options,
        training=training,
        validation=validation,
        seed=seed,
        validation_sessions=None if validation_features is None else sessions_digest(validation_features.sessions),
    )


def train_run(
    runs: Path,
    dataset: str,
    store_fingerprint: str,
    name: str,
    options: dict[str, Any],
    features: SessionFeatures,
    training: Training,
    seed: int = 0,
    validation: Validation = NO_VALIDATION,
    validation_features: SessionFeatures | None = None,
    *,
    spec: dict[str, Any] | None = None,
    threads: ThreadChoice | None = None,
    again: bool = False,
    progress: Callable[[dict[str, Any]], None] | None = None,
) -> Trained:
    """Train model ``name`` with ``options`` unless this very run has finished; ``again`` trains it anyway.

    ``features`` and ``validation_features`` are the two parts of the train sessions, on the device to train on.
    ``spec`` is recorded in run.json; ``progress`` gets each epoch's metrics. ``threads``: measured on CPU when None;
    give the choice of an earlier run to repeat that run's numbers exactly.

    Raises what ``build_model``, ``fit`` and ``RunFolder.training`` raise. Metrics of the epochs before an error stay
    in metrics.jsonl, and the run counts as not finished.
    """
    identity = _identity(name, options, store_fingerprint, features, training, seed, validation, validation_features)
    folder = RunFolder.of(runs, dataset, name, identity.id)
    if folder.state == "finished" and not again:
        return Trained(folder, folder.record()["finished"], reused=True)
    model = build_model(name, options, features.dim, seed).to(features.device)
    if threads is None and model.trainable and features.device.type == "cpu":
        threads = choose_threads(measured_step(model, features, training))
    record = {
        "id": identity.id,
        "dataset": dataset,
        "identity": identity.fields,
        "spec": spec,
        "execution": {
            "device": str(features.device),
            "threads": torch.get_num_threads(),
            "threads_measured_ms": {} if threads is None else {str(n): ms for n, ms in threads.milliseconds.items()},
            "torch": str(torch.__version__),
        },
    }
    started, last = time.perf_counter(), {}
    with folder.training(record):
        for last in fit(model, features, training, seed, validation_features):
            folder.append(last)
            if progress is not None:
                progress(last)
        save_model(folder.path, model)
        summary = {
            **{key: last[key] for key in ("loss", "chosen", "best") if key in last},
            "epochs": last["epoch"],
            "seconds": time.perf_counter() - started,
            "parameters": sum(p.numel() for p in model.parameters()),
            "sessions": len(features),
            "skipped": len(features.skipped),
        }
        if "validation" in last:
            summary["validation"] = folder.metrics()[last.get("best", 0) - 1]["validation"]
        folder.finish(summary)
    return Trained(folder, summary, reused=False)
