"""The single-turn model on the last turn alone: no memory."""

from __future__ import annotations

from torch import Tensor

from pipeline.training.models.base import MemoryModel


class LastTurn(MemoryModel):
    """f'_qry(n) = f_qry(n)."""

    title = "ST, last turn only"
    trainable = False

    def _forward(self, queries: Tensor, lengths: Tensor) -> Tensor:
        return queries
