"""Recall and mean reciprocal rank, per category and overall. All values are in percent."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import numpy as np

from manifests.schema import OVERALL

CUTOFFS = (1, 5, 8, 10, 50)
PRECISION_CUTOFFS = (5, 10, 25, 50)  # of mAP@K, for sessions with several correct images
Averaging = Literal["categories", "sessions"]


def recall(ranks: np.ndarray, k: int) -> float:
    """Return R@K: the share of the ranks [S] that are at most ``k``, in percent."""
    return 100.0 * float(np.mean(ranks <= k))


def average_precision(ranks: Sequence[int], k: int) -> float:
    """Return AP@K in percent from the ranks of a query's correct images (CIRCO, Baldrati et al., ICCV 2023).

    AP@K = 1 / min(K, G) * sum over correct images at rank r <= K of (correct images at ranks <= r) / r, for G of them.
    """
    found = np.sort(np.asarray(ranks))
    hits = found[found <= k]
    return 100.0 * float(np.sum(np.arange(1, len(hits) + 1) / hits)) / min(k, len(found))


def metrics_of(ranks: np.ndarray, cutoffs: Sequence[int] = CUTOFFS) -> dict[str, float]:
    """Return in percent ``R@K`` for each cutoff, ``MRR``, the mean of 1 / rank, and ``mean``, of R@5 and R@8 (the paper's)."""
    values = {f"R@{k}": recall(ranks, k) for k in cutoffs}
    mrr = 100.0 * float(np.mean(1.0 / ranks))
    return {**values, "MRR": mrr, "mean": (recall(ranks, 5) + recall(ranks, 8)) / 2}


def chance(candidates: int, metric: str) -> float:
    """Return a metric's expected value, in percent, for a random order of a gallery of ``candidates`` with a target."""
    if metric == "MRR":
        return 100.0 * float(np.mean(1.0 / np.arange(1, candidates + 1)))
    if metric == "mean":
        return (chance(candidates, "R@5") + chance(candidates, "R@8")) / 2
    return 100.0 * min(int(metric.removeprefix("R@")), candidates) / candidates


def summarize(
    ranks: np.ndarray,
    categories: Sequence[str],
    averaging: Averaging = "categories",
    order: Iterable[str] = (),
    cutoffs: Sequence[int] = CUTOFFS,
    extra: Mapping[str, np.ndarray] | None = None,
) -> dict[str, dict[str, float]]:
    """Return metrics of the ranks [S] per category and overall, each with ``n``, the number of its sessions.

    ``averaging``: "categories" takes the mean of the categories' values (Multi-turn FashionIQ, paper Table 2);
    "sessions" pools all sessions (Multi-turn Shoes, paper Table 3). ``order`` lists categories first and
    keeps those without sessions as ``{"n": 0}``; empty categories are excluded from the mean. ``extra``: further
    metrics as values of each session [S], which are averaged likewise.
    """
    ranks, labels = np.asarray(ranks), np.asarray(categories, dtype=object)
    out: dict[str, dict[str, float]] = {}
    for category in dict.fromkeys([*order, *categories]):
        mine = labels == category
        out[category] = _counted(ranks[mine], cutoffs, {k: v[mine] for k, v in (extra or {}).items()})
    filled = [m for m in out.values() if m["n"]]
    if averaging == "sessions" or not filled:
        out[OVERALL] = _counted(ranks, cutoffs, extra or {})
    else:
        means = {key: float(np.mean([m[key] for m in filled])) for key in filled[0] if key != "n"}
        out[OVERALL] = {"n": len(ranks), **means}
    return out


def _counted(ranks: np.ndarray, cutoffs: Sequence[int], extra: Mapping[str, np.ndarray]) -> dict[str, float]:
    if not len(ranks):
        return {"n": 0}
    return {"n": len(ranks), **metrics_of(ranks, cutoffs), **{k: float(np.mean(v)) for k, v in extra.items()}}
