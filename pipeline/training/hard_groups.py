"""Hard-negative groups: sessions whose final targets look alike stand side by side in a batch (after ReCALL)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.training.data import SessionFeatures

NEIGHBOURS = 32  # candidates for a group, for each session: more find closer mates late in an epoch, and cost memory
_ROWS = 1024  # sessions compared at once


class HardGroups:
    """Batches made of groups of ``size`` sessions of one category, mined once from the cached f_tar.

    A group is a session drawn at random and the unused sessions whose final targets are the most similar to its own;
    sessions with the very same target image are no negatives of each other and are not put together. Every session
    is visited once an epoch.
    """

    def __init__(self, features: SessionFeatures, size: int):
        self.size = size
        rows = features.target_rows[:, -1].cpu()  # padding repeats the last turn
        targets = F.normalize(features.targets[features.target_rows[:, -1]].cpu(), dim=-1)
        names = sorted({s.category for s in features.sessions})
        labels = torch.tensor([names.index(s.category) for s in features.sessions])
        found = []
        for part in torch.arange(len(rows)).split(_ROWS):
            alike = targets[part] @ targets.T
            no_mate = (labels[part, None] != labels) | (rows[part, None] == rows)
            score, mates = alike.masked_fill(no_mate, -torch.inf).topk(min(NEIGHBOURS, len(rows)), dim=1)
            found.append(mates.masked_fill(score == -torch.inf, -1))
        self.mates: list[list[int]] = torch.cat(found).tolist()

    def batches(self, batch_size: int) -> tuple[Tensor, ...]:
        """All sessions in groups, groups in random order, cut into batches, int64 [B] each; see ``epoch_batches``."""
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
        batches = torch.tensor(order).split(batch_size)
        return batches[:-1] if len(batches[-1]) == 1 else batches
