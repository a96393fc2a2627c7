"""Reference implementation of FashionNTM's Cascaded Memory Neural Turing Machine (paper section 3.1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from manifests.schema import Frozen
from pipeline.training.errors import TrainingError
from pipeline.training.models._ntm import MemoryState
from pipeline.training.models._residual import Residual, ResidualKind, ResidualModel
from pipeline.training.models._stage import DerivedFeatures, Stage


class CascadeState(NamedTuple):
    """State of B dialogues between two turns.

    turn: number of turns so far, a tensor in an exported graph; stages: the state of each of the C memories; average:
    [B, D], the moving average of the queries for the option residual = "ewma", zeros otherwise.
    """

    turn: int | Tensor
    stages: tuple[MemoryState, ...]
    average: Tensor


class CMNTM(ResidualModel):
    """C controllers in a chain, each with its own memory [N, M].

    Stage c at turn n: the input of an LSTM controller is [r^{c-1}(n); f_drv^c(n); r^c(n-1)], r^0(n) = r^C(n-1); its
    output controls the read and write head. f_drv^c = BatchNorm(FC_c(f_qry(n))) for c < C, and f_drv^C = f_qry(n).
    f'_qry(n) = FC([controller output of stage C; r^C(n)]), without a sigmoid because the loss is a cosine.
    """

    title = "FashionNTM (CM-NTM)"
    stages: Any  # of C ``Stage``

    class Options(Frozen):
        stages: int = Field(4, ge=1)  # C: 4 for Shoes and 8 for FashionIQ in the paper (section 4.2)
        slots: int = Field(4, ge=1)  # N
        width: int | None = Field(None, ge=1)  # M; None: the width of the features (4 x 768 in the paper)
        hidden: int = Field(100, ge=1)  # units of each controller
        init: Literal["paper", "symmetry-breaking", "addressed"] = "paper"  # see ``Stage``
        dropout: float = Field(0.0, ge=0, lt=1)  # on the input; 0 is the paper's
        residual: ResidualKind = False  # f' = f_qry + output, or the moving average + output; the paper has none

    def __init__(self, options: Options, dim: int):
        super().__init__(options, dim)
        width = options.width or dim
        self.derived = DerivedFeatures(options.stages - 1, dim) if options.stages > 1 else None
        self.stages = nn.ModuleList(
            Stage(dim, options.slots, width, options.hidden, options.init) for _ in range(options.stages)
        )
        self.output = nn.Linear(options.hidden + width, dim)
        nn.init.xavier_uniform_(self.output.weight)
        nn.init.normal_(self.output.bias, std=0.01)
        self.residual = Residual(options.residual, self.output)

    def _forward(self, queries: Tensor, lengths: Tensor) -> Tensor:
        inputs = F.dropout(queries, self.options.dropout, self.training)
        state, outputs = self.initial_state(queries.shape[0]).stages, []
        for features in self._features(inputs):
            output, state = self._turn(features, state)
            outputs.append(output)
        return self.residual(queries, torch.stack(outputs, 1))

    def initial_state(self, batch: int) -> CascadeState:
        """Return the state of ``batch`` sessions before their first turn."""
        average = self.output.weight.new_zeros(batch, self.dim)
        return CascadeState(0, tuple(stage.initial_state(batch) for stage in self.stages), average)

    def step(self, query: Tensor, state: CascadeState) -> tuple[Tensor, CascadeState]:
        """Process one turn of B dialogues, see ``MemoryModel.step``. Raises TrainingError in training mode."""
        if self.training:
            raise TrainingError(f"{self.name}: step is for inference; call model.eval() first")
        (features,) = self._features(query.unsqueeze(1), first_turn=state.turn)
        output, stages = self._turn(features, state.stages)
        output, average = self.residual.step(query, state.average, state.turn, output)
        return output, CascadeState(state.turn + 1, stages, average)

    def _features(self, queries: Tensor, first_turn: int | Tensor = 0) -> list[tuple[Tensor, ...]]:
        """Return for each turn f_drv^1..C, each [B, D], from queries [B, T, D]; the last one is f_qry itself."""
        turns = queries.unbind(1)
        if self.derived is None:
            return [(turn,) for turn in turns]
        derived = self.derived(queries, first_turn)  # [B, T, C-1, D]
        return [(*stages.unbind(1), turn) for stages, turn in zip(derived.unbind(1), turns, strict=True)]

    def _turn(
        self, features: Sequence[Tensor], states: tuple[MemoryState, ...]
    ) -> tuple[Tensor, tuple[MemoryState, ...]]:
        """Run one turn through the cascade: f_drv^1..C, each [B, D] -> output [B, D] and the new stage states."""
        read = states[-1].read  # r^0(n) = r^C(n-1)
        moved: list[MemoryState] = []
        for stage, feature, state in zip(self.stages, features, states, strict=True):
            moved.append(stage(read, feature, state))
            read = moved[-1].read
        return self.output(torch.cat([moved[-1].hidden, read], dim=-1)), tuple(moved)
