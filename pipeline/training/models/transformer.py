"""ST + transformer: a small causal transformer over the turns."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from manifests.schema import Frozen
from pipeline.training.errors import TrainingError
from pipeline.training.models._residual import Residual, ResidualKind, ResidualModel
from pipeline.training.models.base import dropout


class Transformer(ResidualModel):
    """f'_qry(n) = W t(n) + b, t(1..n) from pre-norm encoder layers in which turn n attends to turns 1..n.

    f_qry is projected to ``width``, plus a learned embedding of the turn number. Not in the paper.
    """

    title = "ST + transformer"
    stacks = True

    class Options(Frozen):
        width: int = Field(128, ge=1)
        layers: int = Field(2, ge=1)
        heads: int = Field(4, ge=1)  # must divide width
        turns: int = Field(16, ge=1)  # maximum session length
        dropout: float = Field(0.0, ge=0, lt=1)  # on the input and inside the layers
        residual: ResidualKind = False  # f' = f_qry + output, or the moving average + output
        texts: int = Field(0, ge=0)  # width of the text features to read in addition to f_qry; 0: f_qry alone

    def __init__(self, options: Options, dim: int):
        super().__init__(options, dim)
        if options.width % options.heads:
            what = f"width {options.width} does not divide into {options.heads} heads"
            raise TrainingError(f"transformer: {what}; set heads to a divisor")
        self.input = nn.Linear(dim + options.texts, options.width)
        self.position = nn.Parameter(torch.randn(options.turns, options.width) * 0.02)
        layer = nn.TransformerEncoderLayer(
            options.width, options.heads, 2 * options.width, options.dropout, "gelu", batch_first=True, norm_first=True
        )
        norm = nn.LayerNorm(options.width)
        self.layers = nn.TransformerEncoder(layer, options.layers, norm=norm, enable_nested_tensor=False)
        self.output = nn.Linear(options.width, dim)
        self.residual = Residual(options.residual, self.output)

    def _forward(self, queries: Tensor, lengths: Tensor) -> Tensor:
        turns = queries.shape[1]
        if turns > self.options.turns:
            what = f"a session of {turns} turns, built for {self.options.turns}"
            raise TrainingError(f"transformer: {what}; raise the option turns")
        tokens = self.input(dropout(queries, self.options.dropout, self.training)) + self.position[:turns]
        later = torch.ones(turns, turns, dtype=torch.bool, device=queries.device).triu(1)
        return self.residual(queries[..., : self.dim], self.output(self.layers(tokens, later, is_causal=True)))
