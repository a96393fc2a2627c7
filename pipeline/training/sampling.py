"""Sessions of a training batch: hard-negative groups, and recombined histories that lead to the same last turn."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from manifests.errors import ManifestError, Problem
from pipeline.training.data import SessionFeatures, SessionRows

NEIGHBORS = 32  # group candidates per session; more give closer matches late in an epoch, but need more memory
_ROWS = 1024  # sessions compared at once


class HardGroups:
    """Batches of groups of ``size`` sessions of one category, mined once from the cached f_tar (after ReCALL).

    A group is a random session and the unused sessions with the most similar final targets. Sessions with the same
    target image are not negatives of each other, and are not grouped. Every session occurs once per epoch.
    """

    def __init__(self, features: SessionFeatures, size: int):
        self.size = size
        rows = features.target_rows[:, -1].cpu()  # padding repeats the last turn
        targets = F.normalize(features.targets[features.target_rows[:, -1]].cpu(), dim=-1)
        labels = features.labels.cpu()
        found = []
        for part in torch.arange(len(rows)).split(_ROWS):
            alike = targets[part] @ targets.T
            no_mate = (labels[part, None] != labels) | (rows[part, None] == rows)
            score, mates = alike.masked_fill(no_mate, -torch.inf).topk(min(NEIGHBORS, len(rows)), dim=1)
            found.append(mates.masked_fill(score == -torch.inf, -1))
        self.mates: list[list[int]] = torch.cat(found).tolist()

    def order(self) -> Tensor:
        """Return all sessions, int64 [S], groups in random order."""
        used = [False] * len(self.mates)
        order: list[int] = []
        for seed in torch.randperm(len(self.mates)).tolist():
            if used[seed]:
                continue
            used[seed] = True
            order.append(seed)
            mates = [m for m in self.mates[seed] if m >= 0 and not used[m]][: self.size - 1]
            for mate in mates:
                used[mate] = True
            order.extend(mates)
        return torch.tensor(order)


class Histories:
    """The turns of the train sessions and their possible predecessors.

    A session is a chain of (reference, target) pairs, each with its feedback: a turn may follow any turn of the same
    category whose target is its reference. The 17,000 train pairs of Multi-turn FashionIQ form 9,000 sessions of two to
    four turns, and can be recombined into more than 200,000.
    """

    def __init__(self, features: SessionFeatures):
        """Index the turns. Raises ManifestError for sessions whose turns all lead to the final target (no chain)."""
        final = next((s.id for s in features.sessions if s.turn_targets == "final"), None)
        if final is not None:
            what = f"the turns of session {final!r} lead to its final target, so their pairs form no chain"
            raise ManifestError([Problem("training", "key training.recombine", what, "set it to 0")])
        numbers: dict[tuple[str, int, int], int] = {}  # (category, query row, target row) of a turn
        images: dict[tuple[str, str], int] = {}
        cells, ends, own = [], [], []
        rows = zip(features.sessions, features.query_rows.tolist(), features.target_rows.tolist(), strict=True)
        for number, (session, queries, targets) in enumerate(rows):
            chain = []
            for n, pair in enumerate(session.pairs):
                turn = (session.category, queries[n], targets[n])
                if turn not in numbers:
                    numbers[turn] = len(numbers)
                    cells.append((number, n))
                    ends.append([images.setdefault((session.category, image), len(images)) for image in pair])
                chain.append(numbers[turn])
            own.append(chain + chain[-1:] * (features.turns - len(chain)))
        device = features.device
        self.own = torch.tensor(own, device=device)  # [S, T], the sessions' turns by number
        session, place = torch.tensor(cells, device=device).T
        tables = (features.query_rows, features.target_rows, features.text_rows)
        self._rows = [table[session, place] for table in tables if table is not None]
        # Image numbers of each turn:
        self.reference, self._target = torch.tensor(ends, device=device).T
        self._count = torch.bincount(self._target, minlength=len(images))  # number of turns that lead to each image ...
        self._leading = self._target.argsort(stable=True)  # ... their numbers, sorted by image ...
        self._first = self._count.cumsum(0) - self._count  # ... and the start of each image's turns

    def redrawn(self, index: Tensor, lengths: Tensor, probability: float) -> tuple[Tensor, Tensor]:
        """Replace the history of each of the sessions ``index`` (int64 [B]) with the given ``probability``.

        The last turn, and so the target, is kept. A history is drawn backward turn by turn until it is as long as the
        session's own (``lengths``, int64 [B]), no turn leads to its first image, or the drawn turn would repeat an
        image. Returns turn numbers, int64 [B, T] (padding repeats the last turn), and the new lengths, int64 [B].
        """
        chosen = torch.rand(len(index), device=index.device) < probability
        own = self.own[index]
        chain, length = [own[:, -1]], torch.ones_like(lengths)
        seen = [self._target[chain[0]], self.reference[chain[0]]]
        for _ in range(own.shape[1] - 1):
            image = seen[-1]
            pick = (torch.rand(len(index), device=index.device) * self._count[image]).long()
            before = self._leading[(self._first[image] + pick).clamp_max(len(self._leading) - 1)]
            start = self.reference[before]
            # A history that has ended does not grow again.
            grows = (length == len(chain)) & (length < lengths) & (self._count[image] > 0)
            for other in seen:
                grows &= start != other
            chain.append(before)
            seen.append(start)
            length = length + grows
        place = (length[:, None] - 1 - torch.arange(own.shape[1], device=index.device)).clamp_min(0)
        turns = torch.where(chosen[:, None], torch.stack(chain, 1).gather(1, place), own)
        return turns, torch.where(chosen, length, lengths)

    def rows(self, turns: Tensor, lengths: Tensor) -> SessionRows:
        """Return the rows of sessions given by turn numbers ``turns`` (int64 [B, T]) and ``lengths`` (int64 [B])."""
        queries, targets, *texts = (table[turns] for table in self._rows)
        return SessionRows(queries, targets, texts[0] if texts else None, lengths)
