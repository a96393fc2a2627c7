"""Fits one head a fold beside the head of all train sessions, and keeps them together on disk and in a store's identity."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cache import Store
from manifests.schema import Dataset, Session
from pipeline.composition.checkpoint import fitted, load_composer, save_composer
from pipeline.composition.composers.base import Composer
from pipeline.composition.fit import fit_composer, single_turn_recall
from pipeline.composition.folds import Folds, assign_folds
from pipeline.composition.request import ComposerRequest

MOST_SCORED = 4000  # sessions a score is taken over: enough for a tenth of a percent, and quick


@dataclass(frozen=True)
class CrossFitted:
    """One head a fold; ``heads[k]`` was fitted on the sessions of every other fold."""

    folds: Folds
    heads: tuple[Composer, ...]
    weights: tuple[str, ...]  # SHA-256 of each head's checkpoint

    def fields(self) -> dict[str, Any]:
        """Semantic fields: which heads, and which of them makes which row."""
        return {"count": self.folds.count, "weights": list(self.weights), "rows": self.folds.digest()}

    def head_of(self, row: bytes) -> int:
        """The fold of a query row by its content key, or -1: a row of no train session, made by the head of all."""
        return self.folds.rows.get(row, -1)


def fold_folder(folder: Path, fold: int) -> Path:
    return folder / f"fold-{fold}"


def load_folds(folder: Path, request: ComposerRequest, sessions: tuple[Session, ...], backbone: Store) -> CrossFitted:
    """The heads in ``folder``. Raises what ``load_composer`` raises when one is missing or damaged."""
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
    """Fit the folds' heads into ``folder`` (those already there and whole are kept) and return the record for its sidecar.

    Every head measures in the target space of ``whole``, the head fitted on all ``sessions``: a store has one target row
    an image, so what ``target`` uses is copied from it and frozen. ``on_epoch`` is given {"epoch", "loss", "fold"}.
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
    """A composer for the backbone's sizes, its weights drawn from the fit's seed; global random state is kept."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(request.fit.seed)
        return request.kind(request.options, backbone.tables["image"].dim, backbone.tables["text"].dim)


def share_target(head: Composer, whole: Composer) -> None:
    """Give ``head`` the target side of ``whole``, and keep it from changing."""
    for mine, other in zip(head.target_modules(), whole.target_modules(), strict=True):
        mine.load_state_dict(other.state_dict())
        mine.requires_grad_(False)


def _sample(sessions: tuple[Session, ...], most: int) -> tuple[Session, ...]:
    """At most about ``most`` of ``sessions``, evenly spread, so that every category has its share."""
    return sessions[:: max(1, -(-len(sessions) // max(1, most)))]
