"""Base class of the losses."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor

from manifests.schema import Frozen


class Loss(ABC):
    """Loss of each query. It depends on the scores of that query only, so queries can be computed in blocks."""

    title: ClassVar[str]
    Options: ClassVar[type[Frozen]] = Frozen

    def __init__(self, options: Frozen):
        self.options: Any = options  # of the subclass's ``Options``

    @abstractmethod
    def __call__(self, scores: Tensor, own: Tensor, allowed: Tensor | None, scale: float) -> Tensor:
        """Compute the loss [B] of each query from the cosines ``scores`` [B, K] with the candidates.

        own: int64 [B], the column of each query's target. allowed: bool [B, K], candidates that count as negatives (the
        own column is ignored), None for all. scale: inverse temperature (``training.scale``).
        """

    @staticmethod
    def positive(scores: Tensor, own: Tensor) -> Tensor:
        """Return the score of each query's own target, [B]."""
        return scores.gather(1, own[:, None]).squeeze(1)

    @staticmethod
    def negatives(scores: Tensor, own: Tensor, allowed: Tensor | None) -> Tensor:
        """Return the mask of negatives, bool [B, K]; a query's own column is always False."""
        mask = torch.ones_like(scores, dtype=torch.bool) if allowed is None else allowed.clone()
        return mask.scatter_(1, own[:, None], False)
