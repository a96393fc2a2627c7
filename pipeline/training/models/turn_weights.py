"""ST + turn weights: a weighted sum of the turns, with trained weights instead of EWMA's single alpha."""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from manifests.schema import Frozen
from pipeline.training.errors import TrainingError
from pipeline.training.models.base import MemoryModel, dropout
from pipeline.training.models.ewma import EWMA


class TurnWeights(MemoryModel):
    """f'_qry(n) = sum over the last ``turns`` turns m of w_m f_qry(m), plus v_m text(m) with the option ``texts``.

    The weights are the sum of a learned table by turn number and distance, and the output of a small network on the
    cosine similarities between the turns' features. The output lies in the span of the inputs, which limits
    overfitting. The initial model equals ST + EWMA (network output and v zero). Not in the paper. Texts need D = E.
    """

    title = "ST + turn weights"
    stacks = True

    class Options(Frozen):
        turns: int = Field(4, ge=1)  # number of turns in the sum
        hidden: int = Field(64, ge=1)
        dropout: float = Field(0.3, ge=0, lt=1)  # inside the network
        texts: int = Field(0, ge=0)  # width of the text features to read in addition to f_qry (0 or D); 0: f_qry alone

    def __init__(self, options: Options, dim: int):
        super().__init__(options, dim)
        if options.texts not in (0, dim):
            what = f"turn_weights: text rows of width {options.texts} cannot be summed with features of width {dim};"
            raise TrainingError(f"{what} set the option texts to 0 or {dim}")
        seen = options.turns
        self.kinds = 1 + (options.texts > 0)
        self.table = nn.Parameter(torch.zeros(seen, seen, self.kinds))  # [turn number, turns back, f_qry or text]
        pairs = torch.tril_indices(seen * self.kinds, seen * self.kinds, offset=-1)
        self.register_buffer("pairs", pairs, persistent=False)
        self.hidden = nn.Linear(pairs.shape[1] + seen, options.hidden)
        self.output = nn.Linear(options.hidden, seen * self.kinds)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)
        self._start(1.0)

    def _start(self, alpha: float) -> None:
        """Set the table to the weights of an exponential moving average."""
        with torch.no_grad():
            self.table.zero_()
            for n in range(len(self.table)):
                for back in range(n + 1):
                    self.table[n, back, 0] = (1 - alpha) ** back * (alpha if back < n else 1)

    def fit_parameters(self, features: Any) -> dict[str, Any]:
        average = EWMA(EWMA.Options(), features.dim).to(features.queries)
        chosen = average.fit_parameters(features)
        self._start(float(average.alpha))
        return chosen

    def _forward(self, queries: Tensor, lengths: Tensor) -> Tensor:
        seen, turns = self.options.turns, queries.shape[1]
        features = queries.unflatten(-1, (self.kinds, self.dim))  # [B, T, K, D]
        padded = F.pad(features, (0, 0, 0, 0, seen - 1, 0))
        window = padded.unfold(1, seen, 1).movedim(-1, 2).flip(2)  # [B, T, seen, K, D], the newest turn first
        place = torch.arange(turns, device=queries.device).clamp_max(seen - 1)
        return self.weighted(window, place)

    def weighted(self, window: Tensor, place: Tensor) -> Tensor:
        """Sum windows [B, T, turns, K, D], the newest turn first; place: int64 [T], earlier turns, at most turns - 1."""
        seen = self.options.turns
        unit = F.normalize(window.flatten(2, 3), dim=-1)
        cosines = (unit @ unit.mT)[..., self.pairs[0], self.pairs[1]]
        number = torch.eye(seen, dtype=window.dtype, device=window.device)[place].expand(window.shape[0], -1, -1)
        inner = F.gelu(self.hidden(dropout(torch.cat([cosines, number], -1), self.options.dropout, self.training)))
        own = self.output(dropout(inner, self.options.dropout, self.training)).unflatten(-1, (seen, self.kinds))
        return torch.einsum("btskd,btsk->btd", window, self.table[place] + own)
