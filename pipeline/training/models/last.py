"""ST, last turn only: the single-turn model without a memory."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from pipeline.training.models.base import MemoryModel


class EmptyState(NamedTuple):
    """Empty state."""


class LastTurn(MemoryModel):
    """f'_qry(n) = f_qry(n)."""

    title = "ST, last turn only"
    trainable = False

    def _forward(self, queries: Tensor, lengths: Tensor) -> Tensor:
        return queries

    def initial_state(self, batch: int) -> EmptyState:
        return EmptyState()

    def step(self, query: Tensor, state: EmptyState) -> tuple[Tensor, EmptyState]:
        return query, state
