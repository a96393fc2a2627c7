"""One recurrent layer over the turns: the models ``gru`` and ``lstm``."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor, nn

from manifests.schema import Frozen
from pipeline.training.models._residual import Residual, ResidualKind, ResidualModel
from pipeline.training.models.base import dropout


class Recurrent(ResidualModel):
    """f'_qry(n) = W h(n) + b, with h(1..n) the states of ``layer`` over f_qry(1..n)."""

    layer: ClassVar[type[nn.GRU | nn.LSTM]]

    class Options(Frozen):
        hidden: int = Field(100, ge=1)
        dropout: float = Field(0.0, ge=0, lt=1)  # on the input; 0 in the paper
        residual: ResidualKind = False  # f' = f_qry + output, or the moving average + output; the paper has none
        texts: int = Field(0, ge=0)  # width of the text features to read in addition to f_qry; 0: f_qry alone

    def __init__(self, options: Options, dim: int):
        super().__init__(options, dim)
        # Named as the model, in checkpoints too.
        self.add_module(self.name, self.layer(dim + options.texts, options.hidden, batch_first=True))
        self.output = nn.Linear(options.hidden, dim)
        self.residual = Residual(options.residual, self.output)

    def _forward(self, queries: Tensor, lengths: Tensor) -> Tensor:
        hidden, _ = getattr(self, self.name)(dropout(queries, self.options.dropout, self.training))
        return self.residual(queries[..., : self.dim], self.output(hidden))
