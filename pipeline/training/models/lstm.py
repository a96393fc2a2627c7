"""ST + LSTM: one layer over the turns (paper section 4.3)."""

from __future__ import annotations

from typing import NamedTuple

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from manifests.schema import Frozen
from pipeline.training.models.base import MemoryModel


class LSTMState(NamedTuple):
    """hidden, cell: [B, K] after the last turn."""

    hidden: Tensor
    cell: Tensor


class LSTM(MemoryModel):
    """f'_qry(n) = W h(n) + b, with h(1..n) the states of one LSTM layer over f_qry(1..n)."""

    title = "ST + LSTM"

    class Options(Frozen):
        hidden: int = Field(100, ge=1)
        dropout: float = Field(0.0, ge=0, lt=1)  # on the input; 0 is the paper's
        residual: bool = False  # f' = f_qry + output; the paper has none

    def __init__(self, options: Options, dim: int):
        super().__init__(options, dim)
        self.lstm = nn.LSTM(dim, options.hidden, batch_first=True)
        self.output = nn.Linear(options.hidden, dim)

    def _forward(self, queries: Tensor, lengths: Tensor) -> Tensor:
        hidden, _ = self.lstm(F.dropout(queries, self.options.dropout, self.training))
        output = self.output(hidden)
        return queries + output if self.options.residual else output

    def initial_state(self, batch: int) -> LSTMState:
        zeros = self.output.weight.new_zeros(batch, self.options.hidden)
        return LSTMState(zeros, zeros)

    def step(self, query: Tensor, state: LSTMState) -> tuple[Tensor, LSTMState]:
        out, (hidden, cell) = self.lstm(query.unsqueeze(1), (state.hidden[None], state.cell[None]))
        output = self.output(out[:, 0])
        return query + output if self.options.residual else output, LSTMState(hidden[0], cell[0])
