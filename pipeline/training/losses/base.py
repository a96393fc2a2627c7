"""The contract of a loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from manifests.schema import Frozen


class Loss(ABC):
    """The loss of each query from its scores alone, so that blocks of queries can be computed one after another."""

    title: ClassVar[str]
    Options: ClassVar[type[Frozen]] = Frozen

    def __init__(self, options: Frozen):
        self.options = options

    @abstractmethod
    def __call__(self, scores: Tensor, own: Tensor, allowed: Tensor | None, scale: float) -> Tensor:
        """The loss of each of B queries.

        Args:
            scores: [B, K], cosine similarity of each query to each candidate.
            own: int64 [B], the column of each query's target.
            allowed: bool [B, K], candidates that count as negatives (a query's own column is ignored); None: all.
            scale: inverse temperature (``training.scale``), for the losses that have one.

        Returns:
            [B].
        """

    @staticmethod
    def positive(scores: Tensor, own: Tensor) -> Tensor:
        """[B], each query's score of its own target."""
        return scores.gather(1, own[:, None]).squeeze(1)

    @staticmethod
    def negatives(scores: Tensor, own: Tensor, allowed: Tensor | None) -> Tensor:
        """bool [B, K]: what counts as a negative. A query's own column never does."""
        mask = torch.ones_like(scores, dtype=torch.bool) if allowed is None else allowed.clone()
        return mask.scatter_(1, own[:, None], False)
