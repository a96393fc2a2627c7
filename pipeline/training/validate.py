"""Outputs of a memory model for whole sessions, and their validation recalls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from pipeline.evaluation.metrics import chance, metrics_of
from pipeline.evaluation.ranking import ranks, score_ranks
from pipeline.training.data import SessionBatch, SessionFeatures
from pipeline.training.errors import FeatureError
from pipeline.training.models.base import MemoryModel, last_turn

CUTOFFS = (5, 8)


def inputs_of(model: MemoryModel, features: SessionFeatures) -> Callable[[Tensor], SessionBatch]:
    """Return the function that loads the model's inputs for sessions given by index."""
    if model.dialogs and not features.dialogs:
        where = "which are loaded only where test sessions are evaluated"
        raise FeatureError(f"{model.name} reads whole dialogs as one chat, {where}")
    if features.dialogs and not model.dialogs:
        raise FeatureError(f"{model.name} does not read whole dialogs as one chat")
    if model.reads == "concatenated":
        return features.concatenated
    return partial(features.batch, texts=model.texts > 0)


def embed(model: MemoryModel, features: SessionFeatures, batch: int = 1024) -> Tensor:
    """Compute f'_qry(N) of every session, in eval mode: float32 [S, D], on the device of the features.

    ``batch``: sessions per forward pass; limits memory and does not affect the result.
    """
    return _in_batches(model, features, batch, lambda queries, lengths: last_turn(model(queries, lengths), lengths))


def score(model: MemoryModel, features: SessionFeatures, candidates: Tensor, batch: int = 64) -> Tensor:
    """Score candidates [G, D] for every session (``MemoryModel.score``), in eval mode, in batches: float32 [S, G]."""
    return _in_batches(model, features, batch, lambda queries, lengths: model.score(queries, lengths, candidates))


@torch.no_grad()
def _in_batches(
    model: MemoryModel, features: SessionFeatures, batch: int, compute: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """Return ``compute(queries, lengths)`` of all sessions, concatenated, with the model in eval mode."""
    take, training = inputs_of(model, features), model.training
    model.eval()
    try:
        batches = map(take, torch.arange(len(features), device=features.device).split(batch))
        return torch.cat([compute(queries, lengths) for queries, _, lengths in batches])
    finally:
        model.train(training)


def scorer(model: MemoryModel, features: SessionFeatures) -> Callable[[Sequence[int], np.ndarray], np.ndarray]:
    """Return the scoring function with which ``evaluate`` ranks ``features``, for a model with ``scores``."""

    def scores(rows: Sequence[int], candidates: np.ndarray) -> np.ndarray:
        part, gallery = features.subset(rows), torch.from_numpy(candidates).to(features.device)
        return score(model, part, gallery).cpu().numpy()

    return scores


def recalls(model: MemoryModel, features: SessionFeatures) -> dict[str, float]:
    """Return R@5, R@8 and their mean, in percent over all sessions.

    The gallery of a session is the targets of all turns in its category's sessions. It is smaller than a test gallery,
    so these values serve to compare models and epochs, and are not comparable with test results.
    """
    queries = None if model.scores else embed(model, features).cpu().numpy()
    targets = features.targets.cpu().numpy()
    rows = features.target_rows.cpu().numpy()
    categories = np.array([s.category for s in features.sessions])
    found = np.empty(len(features), dtype=np.int64)
    for category in np.unique(categories):
        members = np.flatnonzero(categories == category)
        gallery, index = np.unique(rows[members], return_inverse=True)
        final = index.reshape(rows[members].shape)[:, -1]  # padding repeats the last turn
        names = [features.sessions[i].id for i in members]
        if queries is not None:
            found[members] = ranks(queries[members], targets[gallery], final, names=names)
            continue
        scores = score(model, features.subset(members.tolist()), features.targets[torch.from_numpy(gallery)])
        found[members] = score_ranks(scores.cpu().numpy(), final, targets[gallery], names=names)
    metrics = metrics_of(found, CUTOFFS)
    return {key: metrics[key] for key in (*(f"R@{k}" for k in CUTOFFS), "mean")}


def chance_recall(features: SessionFeatures) -> float:
    """Return the expected mean of R@5 and R@8, in percent, of a random order of the galleries of ``recalls``."""
    rows, categories = features.target_rows.cpu().numpy(), np.array([s.category for s in features.sessions])
    sizes = {name: len(np.unique(rows[categories == name])) for name in np.unique(categories)}
    return float(np.mean([chance(sizes[name], "mean") for name in categories]))


def embed_turns(model: MemoryModel, features: SessionFeatures) -> Tensor:
    """Compute f'_qry(1..T) of every session, in eval mode: float32 [S, T, D]; turns after a session's end are padding.

    For a model that reads all captions as one query, T is 1: the query after the last turn.
    """
    return _in_batches(model, features, 1024, model)
