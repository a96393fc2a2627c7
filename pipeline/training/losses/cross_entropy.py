"""Cross-entropy over scaled cosine similarity (paper section 3.2)."""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.training.losses.base import Loss


class CrossEntropy(Loss):
    """-log softmax_k(scale * score_k)[own] over a query's own target and its negatives."""

    title = "cross-entropy"

    def __call__(self, scores: Tensor, own: Tensor, allowed: Tensor | None, scale: float) -> Tensor:
        logits = scale * scores
        if allowed is not None:
            logits = logits.masked_fill(~allowed.scatter(1, own[:, None], True), -torch.inf)
        return logits.logsumexp(1) - scale * self.positive(scores, own)
