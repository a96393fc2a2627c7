"""Residual connection as an option of the trained memory models (not in the paper)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from pipeline.training.models.base import MemoryModel
from pipeline.training.models.ewma import EWMA, next_average, running_average

if TYPE_CHECKING:
    from pipeline.training.data import SessionFeatures

ResidualKind = bool | Literal["ewma"]


class Residual(nn.Module):
    """f' = base + output. False: no base. True: f_qry(n). "ewma": the exponential moving average of f_qry(1..n).

    With "ewma" the initial model equals ST + EWMA: its ``output`` layer is initialized to zero, and alpha is
    chosen before training as for the model ``ewma``, on the validation sessions if there are any. Alpha is not trained,
    because f_qry of sessions that the composer was trained on overstates the last turn.
    """

    alpha: Tensor

    def __init__(self, kind: ResidualKind, output: nn.Linear):
        super().__init__()
        self.kind = kind
        if kind == "ewma":
            self.register_buffer("alpha", torch.tensor(1.0))
            nn.init.zeros_(output.weight)
            nn.init.zeros_(output.bias)

    def forward(self, queries: Tensor, output: Tensor) -> Tensor:
        """[B, T, D], [B, T, D] -> [B, T, D]."""
        if self.kind == "ewma":
            return running_average(queries, self.alpha) + output
        return queries + output if self.kind else output

    def step(self, query: Tensor, average: Tensor, turn: int | Tensor, output: Tensor) -> tuple[Tensor, Tensor]:
        """Compute one turn of ``forward``: query, output and the average so far [B, D] -> f'(n) and the new average.

        ``turn``: see ``next_average``. Only "ewma" updates the average.
        """
        if self.kind != "ewma":
            return query + output if self.kind else output, average
        average = next_average(query, average, self.alpha, turn)
        return average + output, average

    def choose(self, features: SessionFeatures) -> dict[str, Any]:
        """Choose alpha as ``EWMA.fit_parameters`` does; return {} for other kinds."""
        if self.kind != "ewma":
            return {}
        average = EWMA(EWMA.Options(), features.dim).to(features.queries)
        chosen = average.fit_parameters(features)
        self.alpha.copy_(average.alpha)
        return chosen


class ResidualModel(MemoryModel):
    residual: Residual

    def fit_parameters(self, features: SessionFeatures) -> dict[str, Any]:
        return self.residual.choose(features)
