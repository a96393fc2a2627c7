"""Batch-hard triplet loss on cosine scores (Hermans et al. 2017)."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from manifests.schema import Frozen
from pipeline.training.losses.base import Loss


class Triplet(Loss):
    """max(0, margin + hardest negative's score - own score). ``training.scale`` is not used."""

    title = "batch-hard triplet loss"

    class Options(Frozen):
        margin: float = Field(0.2, gt=0)

    def __call__(self, scores: Tensor, own: Tensor, allowed: Tensor | None, scale: float) -> Tensor:
        negatives = self.negatives(scores, own, allowed)
        hardest = scores.masked_fill(~negatives, -torch.inf).amax(1)
        return (self.options.margin + hardest - self.positive(scores, own)).clamp_min(0)
