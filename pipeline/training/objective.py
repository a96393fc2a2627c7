"""Objective of a training step: the paper's loss by default, modified by the settings of ``[training]``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor
from torch.func import vmap
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from manifests.schema import Training
from pipeline.training.data import SessionBatch, SessionFeatures
from pipeline.training.determinism import RunRandom
from pipeline.training.losses import build_loss, turnwise_cross_entropy
from pipeline.training.models.base import MemoryModel
from pipeline.training.sampling import Histories

SCORES_HELD = 1 << 24  # maximum number of scores in memory: 64 MiB of float32, and as much for their gradient


@dataclass(frozen=True)
class Step:
    """Input of a model's own loss (``MemoryModel.objective``).

    batch: sessions of the step; rows: int64 [B, T], their targets as rows of ``features.targets``; progress: in (0, 1],
    the fraction of epochs completed at the end of the current one; drawn: random numbers of the loss that were drawn
    before (``MemoryModel.draws``), None to draw them in the loss.
    """

    features: SessionFeatures
    batch: SessionBatch
    rows: Tensor
    training: Training
    progress: float
    drawn: tuple[Tensor, ...] | None = None


class Objective:
    """Loss of a batch of sessions, built once per training; ``turnwise_cross_entropy`` with the default settings."""

    def __init__(self, features: SessionFeatures, training: Training):
        """Build the loss. Raises ManifestError for an unknown loss or option."""
        self.features, self.training = features, training
        self.loss = build_loss(training.loss)
        parts = ("loss", "negatives", "same_target", "uncertainty")
        self.plain = all(getattr(training, part) == Training.model_fields[part].default for part in parts)

    def __call__(self, model: MemoryModel, index: Tensor, progress: float = 1.0) -> Tensor:
        """Return the loss of the sessions ``index`` (int64 [B]), a scalar. ``progress``: see ``Step``."""
        step = self.step(model, index, progress)
        own = model.objective(step)
        return own if own is not None else self.loss_of(step, model(step.batch.queries, step.batch.lengths))

    def loss_of(self, step: Step, predicted: Tensor) -> Tensor:
        """Return the loss of f'_qry [B, T, D], a scalar, for a model without its own loss."""
        t = self.training
        if self.plain:
            _, targets, lengths = step.batch
            return turnwise_cross_entropy(predicted, targets, lengths if t.padding == "mask" else None, t.scale)
        if not t.uncertainty:
            return self._turns(step, predicted)
        share = math.exp(-step.progress)
        return share * self._turns(step, predicted, certain=False) + (1 - share) * self._turns(step, predicted)

    def step(self, model: MemoryModel, index: Tensor, progress: float = 1.0) -> Step:
        """Load the sessions ``index`` (int64 [B]) for ``model``; histories and dropped turns are drawn here."""
        features, t = self.features, self.training
        sessions = features.rows(index)
        if t.recombine:
            sessions = self._histories.rows(*self._histories.redrawn(index, sessions.lengths, t.recombine))
        if t.drop_turns:
            sessions = sessions.at(*kept_turns(sessions.lengths, features.turns, t.drop_turns))
        return Step(features, features.read(sessions, model.texts > 0), sessions.targets, t, progress)

    @cached_property
    def _histories(self) -> Histories:
        return Histories(self.features)

    def _turns(self, step: Step, predicted: Tensor, certain: bool = True) -> Tensor:
        """Return the mean over turns of each turn's mean loss, as in the paper. predicted: [B, T, D]."""
        queries = F.normalize(predicted, dim=-1)
        turns, (_, targets, lengths), width = queries.shape[1], step.batch, self.training.uncertainty
        if self.training.padding == "mask":
            present = torch.arange(turns, device=lengths.device)[:, None] < lengths
        else:
            present = torch.ones(turns, len(lengths), dtype=torch.bool, device=lengths.device)
        static = None
        if self.training.negatives != "batch":
            static = F.normalize(step.features.targets if certain else jittered(step.features.targets, width), dim=-1)
        losses = []
        for n in range(turns):
            (members,) = present[n].nonzero(as_tuple=True)
            if (len(members) < 2 and static is None) or not len(members):
                continue
            rows = step.rows[members, n]
            if static is None:
                candidates = targets[members, n] if certain else jittered(targets[members, n], width)
                own, kinds = torch.arange(len(members), device=rows.device), rows
                candidates = F.normalize(candidates, dim=-1)
            else:
                candidates, own, kinds = static, rows, None
            categories = self._membership[rows] > 0 if self.training.negatives == "category" else None
            losses.append(self._rows(queries[members, n], candidates, own, kinds, categories).mean())
        # Without negatives (every turn has one session only) the loss is zero, with a zero gradient.
        return torch.stack(losses).mean() if losses else predicted.sum() * 0

    def _rows(
        self, queries: Tensor, candidates: Tensor, own: Tensor, kinds: Tensor | None, categories: Tensor | None
    ) -> Tensor:
        """Compute losses [b] of queries [b, D] against candidates [K, D], in blocks of at most ``SCORES_HELD`` scores.

        kinds: int64 [K], the image of each candidate of a batch; categories: bool [b, C], of the queries' targets.
        """

        def block(q: Tensor, o: Tensor, c: Tensor | None) -> Tensor:
            allowed = None
            if kinds is not None and self.training.same_target == "ignore":
                allowed = kinds[None, :] != kinds[o][:, None]
            if c is not None:
                allowed = c.to(torch.float32) @ self._membership.T > 0
            return self.loss(q @ candidates.T, o, allowed, self.training.scale)

        size = max(1, SCORES_HELD // len(candidates))
        if len(queries) <= size:
            return block(queries, own, categories)
        parts = []
        for start in range(0, len(queries), size):  # scores are recomputed in the backward pass, not stored
            of = slice(start, start + size)
            part = None if categories is None else categories[of]
            parts.append(checkpoint(block, queries[of], own[of], part, use_reentrant=False, preserve_rng_state=False))
        return torch.cat(parts)

    @cached_property
    def _membership(self) -> Tensor:
        """Category membership of the train targets, float [G, C] of 0 and 1; an image can be in several categories."""
        labels = self.features.labels
        members = torch.zeros(len(self.features.targets), int(labels.max()) + 1, device=labels.device)
        members[self.features.target_rows, labels[:, None]] = 1
        return members


def kept_turns(lengths: Tensor, turns: int, probability: float) -> tuple[Tensor, Tensor]:
    """Drop each earlier turn with ``probability``; the last turn is always kept.

    Kept turns keep their order and targets, so a shortened session is plausible; padding to T = ``turns`` repeats the
    last one. lengths: int64 [B]. Returns the original turn at each position, int64 [B, T], and the new lengths [B].
    """
    place = torch.arange(turns, device=lengths.device)
    last = lengths[:, None] - 1
    kept = (torch.rand(len(lengths), turns, device=lengths.device) >= probability) & (place < last) | (place == last)
    order = torch.where(kept, place, turns).sort(dim=1).values  # kept turns first, in order
    return torch.where(order < turns, order, last), kept.sum(1)


def jittered(features: Tensor, width: float) -> Tensor:
    """Add Gaussian noise to features [K, D]: a * f + b, a ~ N(1, width), b ~ N(0, width * standard deviation).

    a and b are drawn per element; the standard deviation is taken over the K rows, per dimension.
    """
    spread = features.std(0, correction=0) * width
    return features * (1 + width * torch.randn_like(features)) + spread * torch.randn_like(features)


def losses_of(
    objectives: Sequence[Objective], steps: Sequence[Step], predicted: Tensor, random: RunRandom | None = None
) -> Tensor:
    """Return the losses [K] of f'_qry [K, B, T, D] of K runs without a loss of their own.

    Plain objectives with equal settings are computed in one pass: 25 runs would otherwise launch some 900 operations.
    Others are computed one by one, each with the random state of its run.
    """
    settings = {(o.plain, o.training.padding, o.training.scale) for o in objectives}
    if len(objectives) > 1 and len(settings) == 1 and objectives[0].plain:
        ((_, padding, scale),) = settings
        loss = partial(turnwise_cross_entropy, scale=scale)
        targets = torch.stack([step.batch.targets for step in steps])
        if padding != "mask":
            return vmap(loss)(predicted, targets)
        return vmap(loss)(predicted, targets, torch.stack([step.batch.lengths for step in steps]))
    losses = []
    for run, (objective, step) in enumerate(zip(objectives, steps, strict=True)):
        with random.of(run) if random is not None else nullcontext():
            losses.append(objective.loss_of(step, predicted[run]))
    return torch.stack(losses)
