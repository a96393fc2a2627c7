"""What a memory model makes of whole sessions, and how it ranks them among their own targets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from pipeline.evaluation.metrics import metrics_of
from pipeline.evaluation.ranking import ranks, score_ranks
from pipeline.training.data import SessionBatch, SessionFeatures
from pipeline.training.models.base import MemoryModel

CUTOFFS = (5, 8)


def inputs_of(model: MemoryModel, features: SessionFeatures) -> Callable[[Tensor], SessionBatch]:
    """What the model reads of the sessions given by number."""
    if model.reads == "concatenated":
        return features.concatenated
    return partial(features.batch, texts=model.texts > 0)


@torch.no_grad()
def embed(model: MemoryModel, features: SessionFeatures, batch: int = 1024) -> Tensor:
    """f'_qry(N) of every session, in eval mode: float32 [S, D], on the device of the features.

    ``batch`` sessions go through the model at once; it bounds memory and changes nothing else.
    """
    take = inputs_of(model, features)
    training = model.training
    model.eval()
    try:
        parts = []
        for index in torch.arange(len(features), device=features.device).split(batch):
            queries, _, lengths = take(index)
            outputs = model(queries, lengths)
            parts.append(outputs[torch.arange(len(index), device=features.device), lengths - 1])
        return torch.cat(parts)
    finally:
        model.train(training)


@torch.no_grad()
def score(model: MemoryModel, features: SessionFeatures, candidates: Tensor, batch: int = 64) -> Tensor:
    """Every session's score of every candidate [G, D] (``MemoryModel.score``), in eval mode: float32 [S, G].

    ``batch`` sessions are scored at once; it bounds memory and changes nothing else.
    """
    take = inputs_of(model, features)
    training = model.training
    model.eval()
    try:
        parts = []
        for index in torch.arange(len(features), device=features.device).split(batch):
            queries, _, lengths = take(index)
            parts.append(model.score(queries, lengths, candidates))
        return torch.cat(parts)
    finally:
        model.train(training)


def scorer(model: MemoryModel, features: SessionFeatures) -> Callable[[Sequence[int], np.ndarray], np.ndarray]:
    """What ``evaluate`` ranks the sessions of ``features`` with, for a model that has ``scores``."""

    def scores(rows: Sequence[int], candidates: np.ndarray) -> np.ndarray:
        part, gallery = features.subset(rows), torch.from_numpy(candidates).to(features.device)
        return score(model, part, gallery).cpu().numpy()

    return scores


def recalls(model: MemoryModel, features: SessionFeatures) -> dict[str, float]:
    """R@5, R@8 and their mean, in percent over all sessions; each ranks the targets of its category's sessions.

    The gallery of a category is every turn's target in its sessions, so it is smaller than a test gallery: these
    numbers choose between models and epochs, and are not comparable with a table's.
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
