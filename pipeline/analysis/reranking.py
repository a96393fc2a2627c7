"""Must-have / must-avoid re-ranking of the top candidates, and a relevance cutoff that may reject all candidates.

Both use cached features: scores of a memory model, and text and image rows of the extractor's towers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from manifests.errors import FashionNTMError


class RerankingError(FashionNTMError, ValueError):
    """Array shapes do not match, or an option is out of range."""


def constraint_scores(texts: np.ndarray, lengths: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """Return the mean cosine of each candidate with each session's constraints.

    Args:
        texts: [S, N, E], text rows; lengths: int [S], number of text rows per session (0: no constraint, score 0).
        candidates: [G, E], rows of the image tower, in the embedding space of the text rows.

    Returns:
        float32 [S, G].
    """
    if texts.ndim != 3 or candidates.ndim != 2 or texts.shape[2] != candidates.shape[1]:
        raise RerankingError(
            f"text rows {list(texts.shape)} and candidates {list(candidates.shape)} must be [S, N, E] and [G, E]: "
            "use an extractor whose text and image towers share a space"
        )
    present = np.arange(texts.shape[1]) < np.asarray(lengths)[:, None]
    sums = (_unit(texts) * present[..., None]).sum(1) / np.maximum(1, present.sum(1))[:, None]
    return (sums @ _unit(candidates).T).astype(np.float32)


def rerank(
    scores: np.ndarray,
    must_have: np.ndarray | None = None,
    must_avoid: np.ndarray | None = None,
    top: int = 50,
    have_weight: float = 0.2,
    avoid_weight: float = 0.2,
) -> np.ndarray:
    """Re-rank the ``top`` candidates of each session as in SoFT; the others follow in their original order.

    The new score of a top candidate is score + have_weight * must_have - avoid_weight * must_avoid.

    Args:
        scores: [S, G], higher is better, e.g. cosines. must_have, must_avoid: [S, G] as ``constraint_scores`` gives.

    Returns:
        float32 [S, G]: scores for ``score_ranks``. All candidates that tie with the last re-ranked one are re-ranked,
        so that the order of ties has no effect.
    """
    if top < 1:
        raise RerankingError(f"top = {top}: re-rank at least one candidate")
    for name, given in (("must_have", must_have), ("must_avoid", must_avoid)):
        if given is not None and given.shape != scores.shape:
            raise RerankingError(f"{name} {list(given.shape)} for scores {list(scores.shape)}: give one for each")
    scores = np.asarray(scores, dtype=np.float32)
    border = -np.partition(-scores, min(top, scores.shape[1]) - 1, axis=1)[:, min(top, scores.shape[1]) - 1]
    head = scores >= border[:, None]
    new = scores.copy()
    if must_have is not None:
        new += have_weight * must_have
    if must_avoid is not None:
        new -= avoid_weight * must_avoid
    # Moves the whole tail below the lowest top candidate; the order within the tail is unchanged.
    lowest = np.where(head, new, np.inf).min(1, keepdims=True)
    highest = np.where(head, -np.inf, scores).max(1, keepdims=True)
    drop = np.where(np.isfinite(highest), np.maximum(0, highest - lowest + 1), 0)
    return np.where(head, new, scores - drop).astype(np.float32)


@dataclass(frozen=True)
class RelevanceCutoff:
    """Map from a session's scores to probabilities of relevance, with one global threshold (Cosine Adapter).

    p = sigmoid(a(q) * cos + b(q)), a(q) = softplus(w_a'q + c_a), b(q) = w_b'q + c_b: scale and offset of the cosine
    depend on the query. The order of scores within a session is unchanged. If no candidate is above the threshold, the
    answer is empty.
    """

    weight: Tensor  # [2, D]
    bias: Tensor  # [2]
    threshold: float

    def probabilities(self, queries: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """Return probabilities, float32 [S, G] in (0, 1), of f'_qry [S, D] and its cosines [S, G]."""
        unit = F.normalize(torch.from_numpy(np.asarray(queries, dtype=np.float32)), dim=-1)
        logits = _logits(self.weight, self.bias, unit, torch.from_numpy(np.asarray(scores, dtype=np.float32)))
        return torch.sigmoid(logits).numpy()

    def keeps(self, queries: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """Return the mask of candidates kept in the answer, bool [S, G]."""
        return self.probabilities(queries, scores) >= self.threshold


def fit_cutoff(
    queries: np.ndarray, scores: np.ndarray, target_index: np.ndarray, recall: float = 0.9, steps: int = 300
) -> RelevanceCutoff:
    """Fit the map on sessions with known targets, and set the threshold that keeps ``recall`` of the targets.

    Loss: binary cross-entropy; the target and all other candidates together have equal weight. Full-batch Adam, which
    is deterministic, suffices for so few parameters. Fit on validation sessions, never on test sessions.

    Args:
        queries: [S, D], f'_qry(N). scores: [S, G], their cosines. target_index: int [S].
        recall: share of the targets that the threshold keeps, 0 to 1.

    Raises:
        RerankingError: mismatched shapes, no session, or ``recall`` outside (0, 1].
    """
    if not 0 < recall <= 1:
        raise RerankingError(f"recall = {recall}: give the share of targets to keep, above 0 and at most 1")
    if len(queries) != len(scores) or len(scores) != len(target_index) or not len(scores):
        raise RerankingError(
            f"{len(queries)} queries, {len(scores)} rows of scores, {len(target_index)} targets: one each, one at least"
        )
    unit = F.normalize(torch.from_numpy(np.asarray(queries, dtype=np.float32)), dim=-1)
    cosines = torch.from_numpy(np.asarray(scores, dtype=np.float32))
    own = torch.from_numpy(np.asarray(target_index, dtype=np.int64))[:, None]
    truth = torch.zeros_like(cosines).scatter_(1, own, 1.0)
    weights = torch.full_like(cosines, 1 / max(1, cosines.shape[1] - 1)).scatter_(1, own, 1.0)
    weight = torch.zeros(2, unit.shape[1], requires_grad=True)
    bias = torch.tensor([10.0, -5.0], requires_grad=True)
    optimizer = torch.optim.AdamW([weight, bias], lr=0.05, weight_decay=0.01)
    for _ in range(steps):
        loss = F.binary_cross_entropy_with_logits(
            _logits(weight, bias, unit, cosines), truth, weights, reduction="sum"
        ) / len(cosines)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        found = torch.sigmoid(_logits(weight, bias, unit, cosines)).gather(1, own).squeeze(1).numpy()
    kept = np.sort(found)[::-1][int(np.ceil(recall * len(found))) - 1]
    return RelevanceCutoff(weight.detach(), bias.detach(), float(kept))


def cutoff_report(kept: np.ndarray, target_index: np.ndarray) -> dict[str, float]:
    """Return percentages of sessions with kept target and with empty answer, and the mean number of candidates."""
    own = np.take_along_axis(kept, np.asarray(target_index, dtype=np.int64)[:, None], axis=1)
    return {
        "target kept": 100.0 * float(own.mean()),
        "nothing relevant": 100.0 * float((~kept.any(1)).mean()),
        "candidates": float(kept.sum(1).mean()),
    }


def _logits(weight: Tensor, bias: Tensor, unit: Tensor, cosines: Tensor) -> Tensor:
    slope, offset = (unit @ weight.T + bias).unbind(1)
    return F.softplus(slope)[:, None] * cosines + offset[:, None]


def _unit(rows: np.ndarray) -> np.ndarray:
    rows = np.asarray(rows, dtype=np.float32)
    norms = np.linalg.norm(rows, axis=-1, keepdims=True)
    return np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 0)
