"""Exact cosine search over a whole gallery on one device, in blocks that bound the memory."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline.training.errors import FeatureError

BLOCK_SCORES = 1 << 24  # scores in memory at once: 64 MiB of float32
NORM_ROWS = 16384  # rows normalized at once, to keep the double-precision copy small


class Hits(NamedTuple):
    """The best candidates of B queries. scores: float32 [B, k] cosine, descending; rows: int64 [B, k] in the gallery."""

    scores: Tensor
    rows: Tensor


class ExactIndex:
    """Candidates f_tar [G, D] at unit length on ``device``. Ties are ordered by gallery row."""

    def __init__(self, features: np.ndarray | Tensor, device: torch.device | str = "cpu", block: int = BLOCK_SCORES):
        source = torch.as_tensor(features)
        if source.ndim != 2 or not len(source):
            raise FeatureError(f"candidates have shape {list(source.shape)}, expected [G >= 1, D]: extract the gallery")
        self.block = max(1, block)
        self.features = torch.empty(source.shape, dtype=torch.float32, device=device)
        for start in range(0, len(source), NORM_ROWS):
            self.features[start : start + NORM_ROWS] = unit(source[start : start + NORM_ROWS].to(device))

    def __len__(self) -> int:
        return len(self.features)

    def search(self, queries: Tensor, k: int) -> Hits:
        """Return the ``k`` best of all G for each of queries [B, D] or [D]; fewer if the gallery is smaller.

        Raises FeatureError for another width, k < 1, or values that are not finite.
        """
        queries, k = self._checked(queries, k), min(k, len(self))
        step = max(k, self.block // len(queries))
        best: list[Hits] = []
        for start in range(0, len(self), step):
            scores = queries @ self.features[start : start + step].T
            found = _top(scores, min(k, scores.shape[1]))
            best.append(Hits(found.scores, found.rows + start))
        if len(best) == 1:
            return best[0]
        scores, rows = (torch.cat(parts, 1) for parts in zip(*best, strict=True))
        merged = _top(scores, k)  # blocks are in order, so at equal scores a smaller position is a smaller row
        return Hits(merged.scores, rows.gather(1, merged.rows))

    def scores(self, queries: Tensor) -> Tensor:
        """Return the cosine of queries [B, D] with every candidate: float32 [B, G]."""
        return self._checked(queries, 1) @ self.features.T

    def _checked(self, queries: Tensor, k: int) -> Tensor:
        queries = torch.atleast_2d(torch.as_tensor(queries)).to(self.features.device, torch.float32)
        if queries.ndim != 2 or queries.shape[1] != self.features.shape[1] or not len(queries):
            gallery = list(self.features.shape)
            raise FeatureError(f"queries have shape {list(queries.shape)}, the gallery is {gallery}")
        if k < 1:
            raise FeatureError(f"k = {k}: ask for one result or more")
        if not torch.isfinite(queries).all():
            raise FeatureError("a query holds NaN or infinite values: train the model again at a lower learning rate")
        return unit(queries)


def unit(rows: Tensor) -> Tensor:
    """Return rows [n, D] at unit length, float32; a zero row stays zero. Norms in double if the device supports it."""
    wide = rows.float() if rows.device.type == "mps" else rows.double()
    norms = torch.linalg.vector_norm(wide, dim=1, keepdim=True)
    return torch.where(norms > 0, wide / norms, wide).float()


def _top(scores: Tensor, k: int) -> Hits:
    """``topk`` with ties in a fixed order; a whole row is sorted only if its k-th score is tied."""
    values, rows = scores.topk(k, dim=1)
    tied = (scores >= values[:, -1:]).sum(1) > k
    for query in torch.nonzero(tied).flatten().tolist():
        values[query], order = (part[:k] for part in scores[query].sort(descending=True, stable=True))
        rows[query] = order
    order = torch.argsort(rows, dim=1)  # by row, then stably by score: equal scores keep the order of the gallery
    values, rows = values.gather(1, order), rows.gather(1, order)
    order = torch.argsort(values, dim=1, descending=True, stable=True)
    return Hits(values.gather(1, order), rows.gather(1, order))
