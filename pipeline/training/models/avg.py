"""ST + avg(all turns): the mean of the query features so far (paper section 4.3)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.training.models.base import MemoryModel


class Total(NamedTuple):
    """turn: number of turns so far, a tensor in an exported graph; total: [B, D], the sum of their features."""

    turn: int | Tensor
    total: Tensor


class Average(MemoryModel):
    """f'_qry(n) = mean of f_qry(1..n)."""

    title = "ST + avg(all turns)"
    trainable = False

    def _forward(self, queries: Tensor, lengths: Tensor) -> Tensor:
        counts = torch.arange(1, queries.shape[1] + 1, device=queries.device, dtype=queries.dtype)
        return queries.cumsum(1) / counts[:, None]

    def initial_state(self, batch: int) -> Total:
        return Total(0, torch.zeros(batch, self.dim))

    def step(self, query: Tensor, state: Total) -> tuple[Tensor, Total]:
        after = Total(state.turn + 1, state.total.to(query) + query)
        return after.total / after.turn, after
