"""Dialog Manager (Guo et al. 2018) on cached features, with a rank-based surrogate for its user simulator."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from manifests.schema import Frozen
from pipeline.training.models.base import MemoryModel

if TYPE_CHECKING:
    from pipeline.training.objective import Step


class DialogManager(MemoryModel):
    """f'_qry(n) = FC(GRU(FC(f_qry(1..n)))); a candidate's score is minus its squared distance to f'_qry(N).

    Training has two phases. Pre-training: a triplet loss with random negatives, at every turn. Policy improvement: of
    the ``actions`` train targets nearest to f'_qry(n), the best action is the label of a softmax against ``negatives``
    random train targets. The original finds the best action by rollouts of a user simulator, which logged sessions do
    not have. The surrogate ranks the session's targets of turns n..N among ``gallery`` train targets by distance from
    the action, and sums the ranks over these turns; the best action has the lowest sum.
    """

    title = "Dialog Manager (rank-based surrogate for the simulator)"
    scores = True

    class Options(Frozen):
        width: int = Field(256, ge=1)
        dropout: float = Field(0.0, ge=0, lt=1)  # on the input
        margin: float = Field(0.1, gt=0)
        pretraining: float = Field(0.5, ge=0, le=1)  # fraction of the epochs spent on pre-training
        policy_rate: float = Field(0.1, gt=0)  # factor of training.learning_rate in policy improvement: 1e-3, then 1e-4
        actions: int = Field(4, ge=1)
        negatives: int = Field(5, ge=1)
        temperature: float = Field(0.2, gt=0)
        gallery: int = Field(512, ge=2)  # the batch's own targets, filled up with random train targets

    def __init__(self, options: Options, dim: int):
        super().__init__(options, dim)
        self.turn = nn.Linear(dim, options.width)
        self.gru = nn.GRU(options.width, options.width, batch_first=True)
        self.output = nn.Linear(options.width, dim)

    def _forward(self, queries: Tensor, lengths: Tensor) -> Tensor:
        hidden, _ = self.gru(self.turn(F.dropout(queries, self.options.dropout, self.training)))
        return self.output(hidden)

    def score(self, queries: Tensor, lengths: Tensor, candidates: Tensor) -> Tensor:
        outputs = self(queries, lengths)
        last = outputs[torch.arange(len(lengths), device=lengths.device), lengths - 1]
        # Not as a difference of vectors, which would need [B, G, D]. The clamp removes negative rounding errors.
        squares = last.square().sum(1)[:, None] + candidates.square().sum(1) - 2 * last @ candidates.T
        return -squares.clamp_min(0)

    def rate(self, progress: float) -> float:
        return 1.0 if progress <= self.options.pretraining else self.options.policy_rate

    def objective(self, step: Step) -> Tensor:
        queries, _, lengths = step.batch
        predicted = self(queries, lengths)
        present = torch.arange(queries.shape[1], device=lengths.device) < lengths[:, None]  # [B, T]
        if step.progress <= self.options.pretraining:
            return self._triplet(step, predicted, present)
        return self._policy(step, predicted, present)

    def _triplet(self, step: Step, predicted: Tensor, present: Tensor) -> Tensor:
        """Return the mean over turns of max(0, margin + |f' - f_tar|^2 - |f' - random f_tar|^2)."""
        targets, rows = step.features.targets, step.rows
        other = torch.randint(len(targets), rows.shape, device=rows.device)
        pull = (predicted - targets[rows]).square().sum(-1)
        push = (predicted - targets[other]).square().sum(-1)
        losses = (self.options.margin + pull - push).clamp_min(0)
        return losses[present & (other != rows)].sum() / present.sum()

    def _policy(self, step: Step, predicted: Tensor, present: Tensor) -> Tensor:
        """Return the cross-entropy of the best action against the random negatives, averaged over turns."""
        o, targets = self.options, step.features.targets
        own, places = torch.unique(step.rows, return_inverse=True)  # places [B, T] of the targets in the gallery
        fill = torch.randint(len(targets), (max(0, o.gallery - len(own)),), device=own.device)
        gallery = targets[torch.cat([own, fill])]
        with torch.no_grad():
            nearest = torch.cdist(predicted, gallery).topk(min(o.actions, len(gallery)), largest=False).indices
            best = nearest.gather(2, self._summed_ranks(gallery, nearest, places, present).argmin(2, keepdim=True))
        wrong = torch.randint(len(gallery), (*best.shape[:2], o.negatives), device=own.device)
        choices = torch.cat([best, wrong], 2)  # [B, T, 1 + negatives], the label first
        logits = -(predicted[:, :, None] - gallery[choices]).square().sum(-1) / o.temperature
        same = choices == best
        same[..., 0] = False
        losses = -logits.masked_fill(same, -torch.inf).log_softmax(-1)[..., 0]
        return losses[present].mean()

    @staticmethod
    def _summed_ranks(gallery: Tensor, actions: Tensor, places: Tensor, present: Tensor) -> Tensor:
        """Return the surrogate: for each turn n and action, the summed ranks of the targets of turns n..N.

        Targets are ranked by distance from the action. gallery: [K, D]; actions: int64 [B, T, A] and places: int64
        [B, T], rows of the gallery; present: bool [B, T]; returns [B, T, A].
        """
        order = torch.cdist(gallery, gallery).argsort(1)
        place = torch.arange(len(gallery), device=order.device).expand_as(order)
        rank = torch.empty_like(order).scatter_(1, order, place)  # [K, K]: [i, j] is j's rank by distance from i
        ranks = rank[actions[:, :, :, None], places[:, None, None, :]]  # [B, T, A, T]
        turns = torch.arange(places.shape[1], device=places.device)
        ahead = (turns[None, :] >= turns[:, None]) & present[:, None, :]  # [B, T, T]
        return (ranks * ahead[:, :, None, :]).sum(-1)
