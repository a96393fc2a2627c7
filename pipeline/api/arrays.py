"""Train one run from feature arrays that never saw a store."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike

from manifests.options import parse_file
from manifests.schema import Session, Training, Turn
from pipeline.core.device import resolve_device
from pipeline.training.checkpoint import load_model
from pipeline.training.data import SessionFeatures
from pipeline.training.errors import FeatureError
from pipeline.training.job import TrainRequest, train_runs
from pipeline.training.models import MemoryModel
from pipeline.training.runs import Run, RunFolder

CATEGORY = "all"


@dataclass(frozen=True)
class ArrayRun:
    """A finished run. ``summary``: loss, epochs, seconds and, with validation sessions, their recalls in percent."""

    folder: RunFolder
    model: MemoryModel
    summary: dict[str, Any]

    @torch.no_grad()
    def predict(self, queries: ArrayLike) -> np.ndarray:
        """Return f'_qry of every turn of one session: [T, D] -> float32 [T, D]."""
        rows = torch.as_tensor(np.asarray(queries, dtype=np.float32))[None]
        device = next(iter(self.model.state_dict().values()), rows).device
        lengths = torch.tensor([rows.shape[1]], device=device)
        return self.model(rows.to(device), lengths)[0].cpu().numpy()


def train(
    queries: Sequence[ArrayLike],
    targets: Sequence[ArrayLike],
    model: str = "cm_ntm",
    options: Mapping[str, Any] | None = None,
    training: Mapping[str, Any] | None = None,
    *,
    seed: int = 0,
    validation: tuple[Sequence[ArrayLike], Sequence[ArrayLike]] | None = None,
    name: str = "arrays",
    out: str | Path = "out",
    device: str = "auto",
) -> ArrayRun:
    """Train a memory model on S sessions, or load the finished run of the same arrays, options and seed.

    queries: for each session f_qry of its turns, [T_i, D]. targets: f_tar of each turn's target, [T_i, D]; rows that
    are equal count as one image. training: keys of ``[training]`` in a spec. The run is written to ``<out>/runs/<name>``.

    Raises FeatureError for arrays that do not fit, ManifestError for an unknown model or option, DivergenceError.
    """
    place = resolve_device(device)
    held = None if validation is None else _features(*validation).to(place)
    run = Run(model, dict(options or {}), parse_file(Training, dict(training or {}), "training"), seed)
    given = _features(queries, targets).to(place)
    request = TrainRequest(Path(out) / "runs", name, "arrays", run, given, validation_features=held)
    (done,) = train_runs([request])
    if isinstance(done, Exception):
        raise done
    return ArrayRun(done.folder, load_model(done.folder.path, place), done.summary)


def _features(queries: Sequence[ArrayLike], targets: Sequence[ArrayLike]) -> SessionFeatures:
    """Return the sessions as features. Raises FeatureError naming the first session that does not fit."""
    sources = [np.asarray(rows, dtype=np.float32) for rows in queries]
    wanted = [np.asarray(rows, dtype=np.float32) for rows in targets]
    if not sources or len(sources) != len(wanted):
        counts = f"{len(sources)} sessions of queries and {len(wanted)} of targets"
        raise FeatureError(f"{counts}: give one each, at least one")
    dim = sources[0].shape[-1] if sources[0].ndim == 2 else 0
    for n, (query, target) in enumerate(zip(sources, wanted, strict=True)):
        if query.ndim != 2 or query.shape != target.shape or query.shape[1] != dim or not len(query):
            shapes = f"queries {list(query.shape)}, targets {list(target.shape)}"
            raise FeatureError(f"session {n}: {shapes}; expected [turns, {dim}] twice")
        if not (np.isfinite(query).all() and np.isfinite(target).all()):
            raise FeatureError(f"session {n}: NaN or infinite values; extract these rows again")
    lengths = np.array([len(rows) for rows in sources])
    ends, most = np.cumsum(lengths), int(lengths.max())
    rows = np.minimum(np.arange(most), lengths[:, None] - 1) + (ends - lengths)[:, None]  # the last turn is repeated
    unique, places = np.unique(np.concatenate(wanted), axis=0, return_inverse=True)
    target_rows = places.reshape(-1)[rows]
    hasher = hashlib.sha256(repr((lengths.tolist(), dim)).encode())
    for part in (*sources, *wanted):
        hasher.update(np.ascontiguousarray(part).tobytes())
    arrays = {"queries": np.concatenate(sources), "targets": unique, "query_rows": rows, "target_rows": target_rows}
    arrays |= {"cat_rows": rows[:, 0].copy(), "lengths": lengths}
    tensors: dict[str, Any] = {name: torch.from_numpy(array) for name, array in arrays.items()}
    made = tuple(_session(n, row[: lengths[n]]) for n, row in enumerate(target_rows))
    return SessionFeatures(**tensors, sessions=made, has_concatenated=False, content=hasher.hexdigest())


def _session(number: int, targets: np.ndarray) -> Session:
    """Return a session whose images are named by their target rows, so that equal targets are one image."""
    images = [f"start {number}", *map(str, targets.tolist())]
    turns = tuple(Turn(reference=image, captions=(f"turn {n}",)) for n, image in enumerate(images[:-1], start=1))
    return Session(id=str(number), category=CATEGORY, split="train", turns=turns, target=images[-1])
