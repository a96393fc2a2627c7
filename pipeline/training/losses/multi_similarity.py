"""Multi-Similarity loss (Wang et al., CVPR 2019): mined and softly weighted pairs."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from manifests.schema import Frozen
from pipeline.training.losses.base import Loss


class MultiSimilarity(Loss):
    """log(1 + e^(-alpha (s_p - base))) / alpha + log(1 + sum_n e^(beta (s_n - base))) / beta, over mined pairs.

    A negative is used if s_n > s_p - margin, and the positive if at least one negative is used; otherwise the loss of
    the query is zero. alpha and beta replace ``training.scale``, which is not used.
    """

    title = "Multi-Similarity loss"

    class Options(Frozen):
        alpha: float = Field(2.0, gt=0)
        beta: float = Field(50.0, gt=0)
        base: float = 0.5
        margin: float = Field(0.1, ge=0)

    def __call__(self, scores: Tensor, own: Tensor, allowed: Tensor | None, scale: float) -> Tensor:
        o = self.options
        positive = self.positive(scores, own)
        hard = self.negatives(scores, own, allowed) & (scores > positive[:, None] - o.margin)
        pull = F.softplus(-o.alpha * (positive - o.base)) / o.alpha
        logits = (o.beta * (scores - o.base)).masked_fill(~hard, -torch.inf)
        # The zero logit is the 1 in log(1 + ...), and keeps the gradient finite for a query without hard negatives.
        push = torch.cat([torch.zeros_like(positive)[:, None], logits], 1).logsumexp(1) / o.beta
        return torch.where(hard.any(1), pull + push, pull * 0)
