"""CM-NTM without memory: the same controller, with every read vector set to zero."""

from __future__ import annotations

import math

import torch
from pydantic import Field
from torch import Tensor, nn

from manifests.schema import Frozen
from pipeline.training.models._residual import Residual, ResidualKind, ResidualModel
from pipeline.training.models._stage import initialize_controller
from pipeline.training.models.base import dropout


class NoMemory(ResidualModel):
    """f'_qry(n) = FC([h(n); 0]), h(n) the LSTM controller of stage C on [0; f_qry(n); 0].

    Stages of the CM-NTM are connected by read vectors only. With every read vector zero, the stages before the last
    one do not affect the output, so one controller is equivalent to the cascade for any C. Initialization is that of
    the CM-NTM, including the learned initial state; weights that are only multiplied with zeros are not stored.
    """

    title = "CM-NTM without memory"
    stacks = True

    class Options(Frozen):
        width: int | None = Field(None, ge=1)  # M of the CM-NTM to compare with: sets the initial scale
        hidden: int = Field(100, ge=1)
        dropout: float = Field(0.0, ge=0, lt=1)  # on the input
        residual: ResidualKind = False  # f' = f_qry + output, or the moving average + output

    def __init__(self, options: Options, dim: int):
        super().__init__(options, dim)
        width, hidden = options.width or dim, options.hidden
        self.controller = nn.LSTMCell(dim, hidden)
        self.hidden = nn.Parameter(torch.randn(hidden) * 0.05)
        self.cell = nn.Parameter(torch.randn(hidden) * 0.05)
        self.output = nn.Linear(hidden, dim)
        initialize_controller(self.controller, 2 * width + dim)
        reach = math.sqrt(6 / (hidden + width + dim))  # Xavier bound for [h; r], although r is omitted
        nn.init.uniform_(self.output.weight, -reach, reach)
        nn.init.normal_(self.output.bias, std=0.01)
        self.residual = Residual(options.residual, self.output)

    def _forward(self, queries: Tensor, lengths: Tensor) -> Tensor:
        state = (self.hidden.expand(queries.shape[0], -1), self.cell.expand(queries.shape[0], -1))
        outputs = []
        for turn in dropout(queries, self.options.dropout, self.training).unbind(1):
            state = self.controller(turn, state)
            outputs.append(state[0])
        return self.residual(queries, self.output(torch.stack(outputs, 1)))
