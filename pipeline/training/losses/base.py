"""Base class of the losses, and the paper's: in-batch cross-entropy over cosine similarity, all turns in one product."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from manifests.schema import Frozen


def turnwise_cross_entropy(
    predicted: Tensor, targets: Tensor, lengths: Tensor | None = None, scale: float = 1.0
) -> Tensor:
    """Return the mean over turns n of L_n = 1/B sum_i -log softmax_j(scale * cos(i f'_qry(n), j f_tar(n)))[i].

    A scalar. The targets of all other sessions at the same turn are negatives, even if two sessions share a target
    image, as in the paper's formula (section 3.2).

    Args:
        predicted: [B, T, D], f'_qry.
        targets: [B, T, D], f_tar.
        lengths: [B], turns before padding, to exclude the repeated turns as queries and as negatives; each turn is
            then averaged over its own sessions, and a turn with fewer than two sessions has no loss. None includes the
            repeated turns (the paper).
        scale: inverse temperature; 1 in the paper.
    """
    queries = F.normalize(predicted, dim=-1).transpose(0, 1)  # [T, B, D]
    candidates = F.normalize(targets, dim=-1).transpose(0, 1)
    logits = scale * queries @ candidates.transpose(1, 2)  # [T, B, B], the true target on the diagonal
    if lengths is None:
        return -logits.log_softmax(-1).diagonal(dim1=1, dim2=2).mean()
    present = torch.arange(logits.shape[0], device=lengths.device)[:, None] < lengths  # [T, B]
    present = present & (present.sum(1, keepdim=True) >= 2)
    # A row without a finite logit has a NaN gradient, so a padded row keeps its own logit and is weighted by zero.
    own = torch.eye(logits.shape[1], dtype=torch.bool, device=logits.device)
    losses = -logits.masked_fill(~(present[:, None, :] | own), -torch.inf).log_softmax(-1).diagonal(dim1=1, dim2=2)
    counts = present.sum(1)
    per_turn = (losses * present).sum(1) / counts.clamp_min(1)
    return per_turn.sum() / (counts > 0).sum().clamp_min(1)


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
