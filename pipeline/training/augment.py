"""Augmentation of training batches on cached features: dropped turns and Gaussian noise."""

from __future__ import annotations

import torch
from torch import Tensor


def kept_turns(lengths: Tensor, turns: int, probability: float) -> tuple[Tensor, Tensor]:
    """Drop earlier turns of each session at random; the last turn is always kept.

    Kept turns keep their order and their targets, so a shortened session is a plausible session. Padding repeats the
    last turn.

    Args:
        lengths: int64 [B], turns before padding.
        turns: T, the length to pad to.
        probability: probability of dropping a turn.

    Returns:
        int64 [B, T], the original turn at each position, and int64 [B], the new lengths (at least 1).
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
