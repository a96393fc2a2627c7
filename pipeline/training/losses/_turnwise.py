"""In-batch cross-entropy over cosine similarity, all turns in one product (paper section 3.2)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def turnwise_cross_entropy(
    predicted: Tensor, targets: Tensor, lengths: Tensor | None = None, scale: float = 1.0
) -> Tensor:
    """Mean over turns n of L_n = 1/B sum_i -log softmax_j(scale * cos(i f'_qry(n), j f_tar(n)))[i].

    Every other session's target of the same turn is a negative, also where two sessions share a target image, as in
    the paper's formula.

    Args:
        predicted: [B, T, D], f'_qry.
        targets: [B, T, D], f_tar.
        lengths: [B] turns before padding, to leave the repeated turns out, as queries and as negatives; each turn is
            then averaged over its own sessions, and a turn with fewer than two of them has no loss. None counts the
            repeated turns like any other (the paper).
        scale: inverse temperature; 1 is the paper's.

    Returns:
        scalar.
    """
    queries = F.normalize(predicted, dim=-1).transpose(0, 1)  # [T, B, D]
    candidates = F.normalize(targets, dim=-1).transpose(0, 1)
    logits = scale * queries @ candidates.transpose(1, 2)  # [T, B, B], the true target on the diagonal
    if lengths is None:
        return -logits.log_softmax(-1).diagonal(dim1=1, dim2=2).mean()
    present = torch.arange(logits.shape[0], device=lengths.device)[:, None] < lengths  # [T, B]
    present = present & (present.sum(1, keepdim=True) >= 2)
    # A padded row would have no finite logit and so a NaN gradient: it keeps its own, and is then weighted by zero.
    own = torch.eye(logits.shape[1], dtype=torch.bool, device=logits.device)
    losses = -logits.masked_fill(~(present[:, None, :] | own), -torch.inf).log_softmax(-1).diagonal(dim1=1, dim2=2)
    counts = present.sum(1)
    per_turn = (losses * present).sum(1) / counts.clamp_min(1)
    return per_turn.sum() / (counts > 0).sum().clamp_min(1)
