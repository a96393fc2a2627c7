"""Cross-fitting: one head per fold besides the head of all train sessions, on disk and in a store's fingerprint."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cache import Store
from manifests.schema import Dataset, Session
from pipeline.composition.checkpoint import fitted, fold_folder, load_composer, save_composer
from pipeline.composition.composers.base import Composer
from pipeline.composition.fit import fit_composer, single_turn_recall
from pipeline.composition.folds import Folds, assign_folds
from pipeline.composition.request import ComposerRequest, row_dims

MOST_SCORED = 4000  # sessions per score: accurate to a tenth of a percent, and fast


@dataclass(frozen=True)
class CrossFitted:
    """One head per fold; ``heads[k]`` was fitted on the sessions of all other folds."""

    folds: Folds
    heads: tuple[Composer, ...]
    weights: tuple[str, ...]  # SHA-256 of each head's checkpoint

    def fields(self) -> dict[str, Any]:
        """Return the semantic fields: the heads, and the assignment of rows to heads."""
        return {"count": self.folds.count, "weights": list(self.weights), "rows": self.folds.digest()}

    def head_of(self, row: bytes) -> int:
        """Return the fold of a query row by its content key; -1 for rows that no train session has."""
        return self.folds.rows.get(row, -1)


def load_folds(folder: Path, request: ComposerRequest, sessions: tuple[Session, ...], backbone: Store) -> CrossFitted:
    """Load the heads in ``folder``. Raises the errors of ``load_composer`` when one is missing or damaged."""
    folds = assign_folds(sessions, backbone.catalogue(), request.folds, request.fit.seed)
    loaded = [load_composer(fold_folder(folder, fold)) for fold in range(request.folds)]
    return CrossFitted(folds, tuple(head for head, _ in loaded), tuple(about["weights"] for _, about in loaded))


def fit_folds(
    folder: Path,
    whole: Composer,
    request: ComposerRequest,
    sessions: tuple[Session, ...],
    dataset: Dataset,
    backbone: Store,
    on_epoch: Callable[[dict[str, float]], None] = lambda _: None,
) -> dict[str, Any]:
    """Fit the head of each fold, save it in ``folder`` (valid ones are kept), and return the record for the sidecar.

    All heads use the target space of ``whole``, the head fitted on all ``sessions``, because a store has one target row
    per image: the modules of ``target`` are copied from it and frozen. ``on_epoch`` receives {"epoch", "loss", "fold"}.
    """
    folds = assign_folds(sessions, backbone.catalogue(), request.folds, request.fit.seed)
    unseen: list[tuple[int, dict[str, float]]] = []
    for fold in range(request.folds):
        place = fold_folder(folder, fold)
        own = tuple(s for s, f in zip(sessions, folds.sessions, strict=True) if f == fold)
        if not fitted(place):
            others = tuple(s for s, f in zip(sessions, folds.sessions, strict=True) if f != fold)
            head = new_composer(request, backbone)
            share_target(head, whole)
            curve = []
            for metrics in fit_composer(head, backbone, others, request.fit):
                curve.append(metrics["loss"])
                on_epoch({**metrics, "fold": fold})
            save_composer(place, head, {"fold": fold, "loss": curve, "backbone": backbone.fingerprint})
        head, _ = load_composer(place)
        sample = _sample(own, MOST_SCORED // request.folds)
        unseen.append((len(sample), single_turn_recall(head, backbone, dataset, sample)))
    weights = [n for n, _ in unseen]
    names = [name for name in unseen[0][1] if name != "triplets"]
    return {
        "count": request.folds,
        "sessions": folds.sizes(),
        "groups": folds.groups,
        "largest_group": folds.largest,
        "out_of_fold": {n: float(np.average([score[n] for _, score in unseen], weights=weights)) for n in names},
        "in_sample": single_turn_recall(whole, backbone, dataset, _sample(sessions, MOST_SCORED)),
    }


def new_composer(request: ComposerRequest, backbone: Store) -> Composer:
    """Return a composer of the backbone's sizes, initialized from the fit's seed; the global RNG state is preserved."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(request.fit.seed)
        return request.kind(request.options, *row_dims(backbone))


def share_target(head: Composer, whole: Composer) -> None:
    """Copy the target modules of ``whole`` to ``head`` and freeze them."""
    for mine, other in zip(head.target_modules(), whole.target_modules(), strict=True):
        mine.load_state_dict(other.state_dict())
        mine.requires_grad_(False)


def _sample(sessions: tuple[Session, ...], most: int) -> tuple[Session, ...]:
    """Return about ``most`` evenly spaced ``sessions`` or fewer, so that the categories keep their proportions."""
    return sessions[:: max(1, -(-len(sessions) // max(1, most)))]
