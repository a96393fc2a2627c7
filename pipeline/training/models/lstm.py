"""ST + LSTM: one layer over the turns (paper section 4.3)."""

from __future__ import annotations

from torch import nn

from pipeline.training.models._recurrent import Recurrent


class LSTM(Recurrent):
    """f'_qry(n) = W h(n) + b, with h(1..n) the states of one LSTM layer over f_qry(1..n)."""

    title = "ST + LSTM"
    stacks = True
    layer = nn.LSTM
