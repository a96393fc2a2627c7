"""State of an interrupted training: ``resume.json``, and the tensors of the epoch that it names.

Saved after an epoch: trained tensors, statistics, Adam's moments, the weight average and the best epoch's weights. Each
epoch draws from a seed of its own (``derive_seed(seed, "epoch", n)``), so no random state is saved. A run that goes on
from its state has the same weights, bit for bit, as one that was never interrupted, on the same CPU, back end and
number of threads. Both files are removed when the run finishes.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from cache.files import replace_atomically, write_json
from manifests.identity import digest

ABOUT, TENSORS = "resume.json", "resume-*.safetensors"
FORMAT = 2
SHARE = 0.1  # largest share of the training time that saving may take


@dataclass
class RunState:
    """State of one run after ``epoch``. ``tensors``: "weights.0", "adam.0.exp_avg", "average.0", "best.<name>"."""

    epoch: int
    best: float = -math.inf  # validation mean of the best epoch
    best_epoch: int = 0
    seconds: float = 0.0  # spent up to this epoch, set by the job
    tensors: dict[str, Tensor] = field(default_factory=dict)


def save_state(folder: Path, state: RunState, backend: str, last: Callable[[], object] = lambda: None) -> None:
    """Write ``state`` to ``folder``: the tensors first, then ``resume.json``, then remove the earlier tensors.

    ``last`` is called just before each file is published; the file is not published if ``last`` raises.
    """
    name = TENSORS.replace("*", str(state.epoch))
    data = save(state.tensors)
    replace_atomically(folder / name, data, last=last)
    best = state.best if math.isfinite(state.best) else None
    about: dict[str, Any] = {"format": FORMAT, "epoch": state.epoch, "best": best, "best_epoch": state.best_epoch}
    about |= {"seconds": state.seconds, "backend": backend, "torch": str(torch.__version__)}
    about |= {"tensors": name, "sha256": hashlib.sha256(data).hexdigest()}
    write_json(folder / ABOUT, about | {"check": digest(about)}, last=last)
    remove_state(folder, name)


def load_state(folder: Path, backend: str) -> RunState | None:
    """Return the state in ``folder``, or None: absent, damaged, or of another back end or version of torch."""
    try:
        about = json.loads((folder / ABOUT).read_bytes())
        if about.pop("check") != digest(about):
            return None
        if (about["format"], about["backend"], about["torch"]) != (FORMAT, backend, str(torch.__version__)):
            return None
        data = (folder / Path(about["tensors"]).name).read_bytes()
        if hashlib.sha256(data).hexdigest() != about["sha256"]:
            return None
        best = -math.inf if about["best"] is None else float(about["best"])
        return RunState(int(about["epoch"]), best, int(about["best_epoch"]), float(about["seconds"]), load(data))
    except (OSError, AttributeError, KeyError, TypeError, ValueError, RecursionError, SafetensorError):
        return None


def remove_state(folder: Path, keep: str = "") -> None:
    """Remove the state in ``folder``, or all tensors but ``keep``."""
    if not keep:
        (folder / ABOUT).unlink(missing_ok=True)
    for path in folder.glob(TENSORS):
        if path.name != keep:
            path.unlink(missing_ok=True)


class Pace:
    """Whether to save now: so seldom that saving takes at most ``SHARE`` of the time."""

    def __init__(self) -> None:
        self._ended, self._cost = time.perf_counter(), 0.0

    def due(self) -> bool:
        return time.perf_counter() - self._ended >= self._cost / SHARE

    def saved(self, started: float) -> None:
        """Note a save that began at ``started`` (``time.perf_counter``) and ends now."""
        self._ended = time.perf_counter()
        self._cost = self._ended - started
