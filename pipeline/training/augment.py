"""Changes of a training batch on the cache: sessions with turns left out, features with Gaussian noise."""

from __future__ import annotations

import torch
from torch import Tensor


def kept_turns(lengths: Tensor, turns: int, probability: float) -> tuple[Tensor, Tensor]:
    """Leave out earlier turns of each session at random; the last one always stays.

    What stays keeps its order and each turn its own target, so a shortened session is one that the user could have
    had. Padding repeats the last turn.

    Args:
        lengths: int64 [B], turns before padding. turns: T, the length to pad to. probability: of leaving a turn out.

    Returns:
        int64 [B, T], which turn stands at each place, and int64 [B], the new lengths (1 at least).
    """
    place = torch.arange(turns, device=lengths.device)
    last = lengths[:, None] - 1
    kept = (torch.rand(len(lengths), turns, device=lengths.device) >= probability) & (place < last) | (place == last)
    order = torch.where(kept, place, turns).sort(dim=1).values  # kept turns first, in order
    return torch.where(order < turns, order, last), kept.sum(1)


def jittered(features: Tensor, width: float) -> Tensor:
    """Gaussian feature augmentation: a * f + b with a ~ N(1, width) and b ~ N(0, width * deviation of the rows).

    features: [K, D]; a and b are drawn for each element, the deviation is taken over the K rows for each dimension.
    """
    spread = features.std(0, correction=0) * width
    return features * (1 + width * torch.randn_like(features)) + spread * torch.randn_like(features)
