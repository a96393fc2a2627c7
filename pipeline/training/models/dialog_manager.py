"""Dialog Manager (Guo et al. 2018) on cached features, with a rank-based surrogate for its user simulator."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from pydantic import Field
from torch import Tensor, nn

from manifests.schema import Frozen
from pipeline.training.models.base import MemoryModel, dropout, last_turn

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
    stacks = True

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
        hidden, _ = self.gru(self.turn(dropout(queries, self.options.dropout, self.training)))
        return self.output(hidden)

    def score(self, queries: Tensor, lengths: Tensor, candidates: Tensor) -> Tensor:
        last = last_turn(self(queries, lengths), lengths)
        # Not as a difference of vectors, which would need [B, G, D]. The clamp removes negative rounding errors.
        squares = last.square().sum(1)[:, None] + candidates.square().sum(1) - 2 * last @ candidates.T
        return -squares.clamp_min(0)

    def rate(self, progress: float) -> float:
        return (1.0, self.options.policy_rate)[self.phase(progress)]

    def phase(self, progress: float) -> int:
        return int(progress > self.options.pretraining)

    def draws(self, step: Step) -> tuple[Tensor, ...]:
        """Draw other targets [B, T] for pre-training; for policy improvement, fill [G] and negatives [B, T, n].

        G = max(``gallery``, B T) slots. The first are the batch's own targets; ``fill`` has random rows of the train
        targets in the slots that are left up to ``gallery``, and 0 elsewhere. The negatives are slots.
        """
        count, rows, o = len(step.features.targets), step.rows, self.options
        if not self.phase(step.progress):
            return (torch.randint(count, rows.shape, device=rows.device),)
        own = len(rows.unique())
        fill = rows.new_zeros(max(o.gallery, rows.numel()))
        if own < o.gallery:
            fill[own : o.gallery] = torch.randint(count, (o.gallery - own,), device=rows.device)
        size = max(own, o.gallery)
        return fill, torch.randint(size, (*rows.shape, o.negatives), device=rows.device)

    def objective(self, step: Step) -> Tensor:
        queries, _, lengths = step.batch
        predicted = self(queries, lengths)
        present = torch.arange(queries.shape[1], device=lengths.device) < lengths[:, None]  # [B, T]
        drawn = self.draws(step) if step.drawn is None else step.drawn
        return (self._triplet, self._policy)[self.phase(step.progress)](step, predicted, present, *drawn)

    def _triplet(self, step: Step, predicted: Tensor, present: Tensor, other: Tensor) -> Tensor:
        """Return the mean over turns of max(0, margin + |f' - f_tar|^2 - |f' - random f_tar|^2)."""
        targets, rows = step.features.targets, step.rows
        pull = (predicted - targets[rows]).square().sum(-1)
        push = (predicted - targets[other]).square().sum(-1)
        losses = (self.options.margin + pull - push).clamp_min(0)
        return (losses * (present & (other != rows))).sum() / present.sum()

    def _policy(self, step: Step, predicted: Tensor, present: Tensor, fill: Tensor, wrong: Tensor) -> Tensor:
        """Return the cross-entropy of the best action against the random negatives, averaged over turns."""
        o, targets = self.options, step.features.targets
        rows, places, own = _gallery(step.rows, fill)
        gallery = targets[rows]
        with torch.no_grad():
            first = (rows[:, None] == rows).to(torch.uint8).argmax(1)  # one distance for all slots of a target
            empty = torch.arange(len(rows), device=rows.device) >= own.clamp_min(o.gallery)
            near = torch.cdist(predicted, gallery)[..., first].masked_fill(empty, torch.inf)
            nearest = near.sort(dim=-1, stable=True).indices[..., : o.actions]
            between = torch.cdist(gallery, gallery)[first][:, first].masked_fill(empty, torch.inf)
            ranks = _summed_ranks(between, nearest, places, present)
            last = ranks.masked_fill(empty[nearest], torch.iinfo(torch.int64).max)
            best = nearest.gather(2, last.argmin(2, keepdim=True))
        choices = torch.cat([best, wrong], 2)  # [B, T, 1 + negatives], the label first
        logits = -(predicted[:, :, None] - gallery[choices]).square().sum(-1) / o.temperature
        same = torch.cat([torch.zeros_like(best, dtype=torch.bool), wrong == best], 2)
        losses = -logits.masked_fill(same, -torch.inf).log_softmax(-1)[..., 0]
        return (losses * present).sum() / present.sum()


def _gallery(rows: Tensor, fill: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gallery's rows [G], the slots [B, T] of ``rows`` in it, and the number of distinct ones (a scalar).

    Distinct rows fill the first slots in ascending order. All shapes are those of the arguments, and the host need not
    know a value, so that a CUDA graph can capture it.
    """
    ascending, order = rows.flatten().sort()
    new = torch.cat([torch.zeros_like(ascending[:1]), (ascending[1:] != ascending[:-1]).to(torch.int64)])
    slots = new.cumsum(0)
    places = torch.zeros_like(slots).scatter(0, order, slots).view(rows.shape)
    return fill + torch.zeros_like(fill).scatter(0, slots, ascending), places, slots[-1] + 1


def _summed_ranks(distances: Tensor, actions: Tensor, places: Tensor, present: Tensor) -> Tensor:
    """Return the surrogate [B, T, A]: for each turn n and action, the summed ranks of the targets of turns n..N.

    Targets are ranked by distance from the action; of equal distances, the lower slot is first. distances: [G, G]
    between slots of the gallery; actions: int64 [B, T, A] and places: int64 [B, T], slots; present: bool [B, T].
    """
    order = distances.sort(dim=1, stable=True).indices
    place = torch.arange(len(distances), device=order.device).expand_as(order)
    rank = torch.zeros_like(order).scatter(1, order, place)  # [G, G]: [i, j] is j's rank by distance from i
    ranks = rank[actions[:, :, :, None], places[:, None, None, :]]  # [B, T, A, T]
    turns = torch.arange(places.shape[1], device=places.device)
    ahead = (turns[None, :] >= turns[:, None]) & present[:, None, :]  # [B, T, T]
    return (ranks * ahead[:, :, None, :]).sum(-1)
