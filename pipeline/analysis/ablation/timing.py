"""Inference time of one session (paper Figure 8), measured side by side for all points of an ablation."""

from __future__ import annotations

import json
import platform
import statistics
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from cache.files import replace_atomically
from pipeline.analysis.ablation.plan import PlannedRun
from pipeline.core.device import describe, seconds_of
from pipeline.jobs.experiment import Experiment
from pipeline.training.checkpoint import load_model
from pipeline.training.validate import inputs_of

ROUNDS = 30  # each round times every point once, so that other load on the machine affects all points equally
WARM_UP = 3


def timing_file(out: Path, ablation: str) -> Path:
    return out / "ablations" / ablation / "timing.json"


def read_timing(path: Path) -> dict[str, Any]:
    """Read the measurement in ``path``; {} if there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) and isinstance(found.get("runs"), dict) else {}


def measure_timing(experiment: Experiment, tasks: Sequence[PlannedRun], path: Path) -> dict[str, Any]:
    """Time f_qry(1..T) -> f'_qry(1..T) of one session with the most turns, with one finished run per point.

    Writes median and quartiles in milliseconds by run id to ``path``. Encoding a turn and ranking the gallery are equal
    for all points and not included.
    """
    folders = {task.point.number: experiment.folder(task.run) for task in tasks}
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
    record: dict[str, Any] = {
        "device": describe(experiment.device),
        "machine": f"{platform.machine()} {platform.system()}",
    }
    record |= {"threads": torch.get_num_threads(), "torch": str(torch.__version__), "rounds": ROUNDS}
    record |= {"turns": int(experiment.test.lengths.max())}
    record["runs"] = {run: {"milliseconds": q[1], "low": q[0], "high": q[2]} for run, q in quartiles.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_atomically(path, (json.dumps(record, indent=2) + "\n").encode())
    return record
