"""ST + GRU: one layer over the turns. Not in the paper."""

from __future__ import annotations

from torch import nn

from pipeline.training.models._recurrent import Recurrent


class GRU(Recurrent):
    """f'_qry(n) = W h(n) + b, with h(1..n) the states of one GRU layer over f_qry(1..n)."""

    title = "ST + GRU"
    stacks = True
    layer = nn.GRU
