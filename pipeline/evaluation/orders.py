"""Ranked candidates of each query, in the order that gives the ranks of ``ranking``: a target follows its ties."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from manifests.schema import Session
from pipeline.evaluation.evaluate import Candidates
from pipeline.evaluation.ranked_files import Ranked
from pipeline.evaluation.ranking import SCORES_HELD, distinct, unit_rows


def ranked_lists(
    queries: np.ndarray,
    sessions: Sequence[Session],
    galleries: Mapping[str, Candidates],
    top: int,
    score: Callable[[Sequence[int], np.ndarray], np.ndarray] | None = None,
) -> Iterator[tuple[Ranked, str]]:
    """Yield (list of the ``top`` candidates, target) of each session that has its target; args of ``evaluate``."""
    for category, gallery in galleries.items():
        mine = [n for n, s in enumerate(sessions) if s.category == category and s.target in gallery.index]
        targets = np.array([gallery.index[sessions[n].target] for n in mine], dtype=np.int64)
        if score is None:
            found = cosine_orders(queries[mine], gallery.features, targets, top)
        else:
            found = score_orders(score(mine, gallery.features), gallery.features, targets, top)
        for n, (rows, scores) in zip(mine, found, strict=True):
            images = tuple(gallery.images[row] for row in rows)
            yield Ranked(sessions[n].id, images, tuple(scores.tolist())), sessions[n].target


def cosine_orders(
    queries: np.ndarray, candidates: np.ndarray, target_index: np.ndarray, top: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield for each query (candidate rows int64 [K], cosines float32 [K]), best first, K = min(top, G).

    Args and rounding are those of ``ranking.ranks``: the same blocks give the same cosines, and so the same ties.
    """
    unique, inverse, _ = distinct(unit_rows(np.asarray(candidates)))
    targets = np.asarray(target_index, dtype=np.int64)
    step = max(1, SCORES_HELD // max(1, len(unique)))
    for start in range(0, len(queries), step):
        scores = unit_rows(np.asarray(queries)[start : start + step]) @ unique.T
        for row, target in zip(scores, targets[start : start + step], strict=True):
            yield _best(row[inverse], int(target), top)


def score_orders(
    scores: np.ndarray, candidates: np.ndarray, target_index: np.ndarray, top: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield as ``cosine_orders``, for given scores [S, G]; equal candidates share the score of the first of them."""
    _, inverse, _ = distinct(np.asarray(candidates, dtype=np.float32))
    first = np.unique(inverse, return_index=True)[1]
    for row, target in zip(np.asarray(scores)[:, first], target_index, strict=True):
        yield _best(row[inverse], int(target), top)


def _best(scores: np.ndarray, target: int, top: int) -> tuple[np.ndarray, np.ndarray]:
    last = np.zeros(len(scores), dtype=bool)
    last[target] = True
    order = np.lexsort((np.arange(len(scores)), last, -scores))[:top]
    return order, scores[order]
