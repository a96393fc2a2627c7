"""In-batch cross-entropy over cosine similarity, all turns in one product (paper section 3.2)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def turnwise_cross_entropy(
    predicted: Tensor, targets: Tensor, lengths: Tensor | None = None, scale: float = 1.0
) -> Tensor:
    """Return the mean over turns n of L_n = 1/B sum_i -log softmax_j(scale * cos(i f'_qry(n), j f_tar(n)))[i].

    The targets of all other sessions at the same turn are negatives, even if two sessions share a target image, as in
    the paper's formula.

    Args:
        predicted: [B, T, D], f'_qry.
        targets: [B, T, D], f_tar.
        lengths: [B], turns before padding, to exclude the repeated turns as queries and as negatives; each turn is
            then averaged over its own sessions, and a turn with fewer than two sessions has no loss. None includes the
            repeated turns (the paper).
        scale: inverse temperature; 1 in the paper.

    Returns:
        Scalar.
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
