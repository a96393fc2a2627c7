"""Hard-negative groups: sessions with similar final targets are placed in the same batch (after ReCALL)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.training.data import SessionFeatures

NEIGHBORS = 32  # group candidates per session; more give closer matches late in an epoch, but need more memory
_ROWS = 1024  # sessions compared at once


class HardGroups:
    """Batches of groups of ``size`` sessions of one category, mined once from the cached f_tar.

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
