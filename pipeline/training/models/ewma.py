"""ST + EWMA: an exponential moving average of the query features (paper section 4.3)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from manifests.schema import Frozen
from pipeline.training.errors import TrainingError
from pipeline.training.models.base import MemoryModel
from pipeline.training.validate import recalls

if TYPE_CHECKING:
    from pipeline.training.data import SessionFeatures

GRID = tuple(step / 20 for step in range(20, 0, -1))  # 1.00 (last turn only) down to 0.05


class AverageState(NamedTuple):
    """turn: number of turns so far, a tensor in an exported graph; average: [B, D], f'_qry of the last turn."""

    turn: int | Tensor
    average: Tensor


def running_average(queries: Tensor, alpha: float | Tensor) -> Tensor:
    """EWMA(1) = f_qry(1); EWMA(n) = alpha * f_qry(n) + (1 - alpha) * EWMA(n-1). [B, T, D] -> [B, T, D]."""
    averages = [queries[:, 0]]
    for turn in queries.unbind(1)[1:]:
        averages.append(alpha * turn + (1 - alpha) * averages[-1])
    return torch.stack(averages, 1)


def next_average(query: Tensor, average: Tensor, alpha: Tensor, turn: int | Tensor) -> Tensor:
    """Return EWMA(n) [B, D] from EWMA(n-1); ``turn``: number of earlier turns, a tensor in an exported graph."""
    moved = alpha * query + (1 - alpha) * average
    if isinstance(turn, Tensor):
        return torch.where(turn == 0, query, moved)
    return moved if turn else query


class EWMA(MemoryModel):
    """f'_qry(1) = f_qry(1); f'_qry(n) = alpha * f_qry(n) + (1 - alpha) * f'_qry(n-1).

    The paper gives no alpha. Unless the options set it, it is chosen on a grid by the mean of R@5 and R@8 on the
    sessions given to ``fit_parameters``, ranked among the targets of these sessions.
    """

    title = "ST + EWMA"
    trainable = False

    class Options(Frozen):
        alpha: float | None = Field(None, gt=0, le=1)  # weight of the newest turn; None: chosen on the grid

    def __init__(self, options: Options, dim: int):
        super().__init__(options, dim)
        self.register_buffer("alpha", torch.tensor(torch.nan if options.alpha is None else options.alpha))

    def _forward(self, queries: Tensor, lengths: Tensor) -> Tensor:
        self._check_chosen()
        return running_average(queries, self.alpha)

    def initial_state(self, batch: int) -> AverageState:
        return AverageState(0, self.alpha.new_zeros(batch, self.dim))

    def step(self, query: Tensor, state: AverageState) -> tuple[Tensor, AverageState]:
        self._check_chosen()
        average = next_average(query, state.average, self.alpha, state.turn)
        return average, AverageState(state.turn + 1, average)

    def _check_chosen(self) -> None:
        if not torch.compiler.is_compiling() and torch.isnan(self.alpha):
            raise TrainingError("ewma: alpha is not chosen yet; train the model, or set the option alpha")

    def fit_parameters(self, features: SessionFeatures) -> dict[str, Any]:
        """Choose alpha on the grid unless the options set it; a tie goes to the larger alpha."""
        if self.options.alpha is not None:
            return {"alpha": self.options.alpha}
        scores: dict[float, float] = {}
        for alpha in GRID:
            self.alpha.fill_(alpha)
            scores[alpha] = recalls(self, features)["mean"]
        best = max(scores, key=lambda a: (scores[a], a))
        self.alpha.fill_(best)
        return {"alpha": best, "grid": {f"{a:.2f}": round(score, 3) for a, score in scores.items()}}
