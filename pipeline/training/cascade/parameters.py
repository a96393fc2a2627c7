"""Stacked parameters of K cascades of one shape, in the layout of the fast path.

Stacked tensors have the leading dimensions [K, C], so that one product serves all runs and all stages. The controller's
matrix is split by when its input is known (``from_previous``: r^{c-1}(n), stage by stage; ``from_feature``: f_drv,
before the first turn; ``from_own``: [r^c; h^c](n-1), one turn earlier). The heads' outputs are columns in the order in
which a turn needs them (``head_order``), with their biases as a last row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.training.models._ntm import HEADS, head_sizes
from pipeline.training.models.cm_ntm import CMNTM

SCALARS = sum(head_sizes(0))  # of one head: strength, gate, three shifts, sharpening


@dataclass(frozen=True)
class Shape:
    """Sizes of a cascade: C stages, features of width D, memories of N slots of width M, H hidden units."""

    stages: int
    dim: int
    slots: int
    width: int
    hidden: int

    @classmethod
    def of(cls, model: CMNTM) -> Shape:
        options = model.options
        return cls(options.stages, model.dim, options.slots, options.width or model.dim, options.hidden)


def head_order(width: int) -> Tensor:
    """Return the indices of the reference's head outputs in the order of the fast path, int64 [2 (M + 6) + 2 M].

    Reference: read head (key, scalars), write head (key, scalars), erase, add. Fast: read key, read scalars (needed in
    the chain of stages), write scalars, erase, add, write key (not needed in the chain).
    """
    one = width + SCALARS
    rows = torch.arange(HEADS * one + 2 * width)
    read, write, rest = rows[:one], rows[one : 2 * one], rows[2 * one :]
    return torch.cat([read, write[width:], rest, write[:width]])


class StackedCascade(nn.Module):
    """Stacked copies of the parameters of K reference models; ``write_to`` copies the values back.

    from_previous: [K, C, 4 H, M]; from_feature: [K, C, 4 H, D]; from_own: [K, C, 4 H, M + H].
    gate_biases: [K, C, 2, 4 H], the LSTM's two biases, which are added but have separate Adam steps.
    heads: [K, C, H + 1, 4 M + 12]. state: [K, C, M + H], the initial [r; h]. cell: [K, C, H]. start: [K, C, 2, N].
    memory: [K, C, N, M], learned or constant. output: [K, D, M + H], of [r; h], and output_bias.
    derived_weight: [K, (C-1) D, D], with derived_gain and derived_bias. Running statistics: [K, turns, (C-1) D].
    """

    memory: Tensor
    derived_weight: Tensor
    derived_gain: Tensor
    derived_bias: Tensor
    running_mean: Tensor
    running_var: Tensor
    _order: Tensor

    def __init__(self, models: Sequence[CMNTM]):
        super().__init__()
        first = models[0]
        self.shape, self.options = Shape.of(first), first.options
        order = head_order(self.shape.width).to(first.output.weight.device)
        self.register_buffer("_order", order)
        stages = [list(model.stages) for model in models]

        def stacked(pick: Callable[[Any], Tensor]) -> nn.Parameter:
            return nn.Parameter(torch.stack([torch.stack([pick(s).detach() for s in run]) for run in stages]))

        width, before = self.shape.width, self.shape.width + self.shape.dim  # weight_ih columns: [r^{c-1}; f_drv; r^c]
        self.from_previous = stacked(lambda s: s.controller.weight_ih[:, :width])
        self.from_feature = stacked(lambda s: s.controller.weight_ih[:, width:before])
        self.from_own = stacked(lambda s: torch.cat([s.controller.weight_ih[:, before:], s.controller.weight_hh], 1))
        self.gate_biases = stacked(lambda s: torch.stack([s.controller.bias_ih, s.controller.bias_hh]))
        self.heads = stacked(lambda s: torch.cat([s.heads.weight[order].mT, s.heads.bias[order][None]]))
        self.state = stacked(lambda s: torch.cat([s.read, s.hidden]))
        self.cell, self.start = stacked(lambda s: s.cell), stacked(lambda s: s.start)
        memory = stacked(lambda s: s.memory)
        self.learned_memory = isinstance(first.stages[0].memory, nn.Parameter)
        if self.learned_memory:
            self.memory = memory
        else:
            self.register_buffer("memory", memory.data)
        # The reference's columns are in the order [h; r].
        self.output = nn.Parameter(torch.stack([m.output.weight.detach().roll(width, 1) for m in models]))
        self.output_bias = nn.Parameter(torch.stack([m.output.bias.detach() for m in models]))
        if first.derived is not None:
            for name in ("weight", "gain", "bias"):
                values = torch.stack([getattr(m.derived, name).detach() for m in models])
                setattr(self, f"derived_{name}", nn.Parameter(values))
            for name in ("running_mean", "running_var"):
                self.register_buffer(name, torch.stack([getattr(m.derived, name) for m in models]))

    @property
    def constant(self) -> float | None:
        """The constant initial value of every memory, as in the public initialization; None for other memories."""
        value = float(self.memory.detach().flatten()[0])
        return value if not self.learned_memory and bool((self.memory == value).all()) else None

    @torch.no_grad()
    def write_to(self, models: Sequence[CMNTM]) -> None:
        """Copy run k's values to the parameters of ``models[k]``."""
        width = self.shape.width
        for k, model in enumerate(models):
            for c, stage in enumerate(model.stages):
                own_read, own_hidden = self.from_own[k, c].tensor_split([width], 1)
                inputs = (self.from_previous[k, c], self.from_feature[k, c], own_read)
                stage.controller.weight_ih.copy_(torch.cat(inputs, 1))
                stage.controller.weight_hh.copy_(own_hidden)
                stage.controller.bias_ih.copy_(self.gate_biases[k, c, 0])
                stage.controller.bias_hh.copy_(self.gate_biases[k, c, 1])
                stage.heads.weight[self._order] = self.heads[k, c, :-1].mT
                stage.heads.bias[self._order] = self.heads[k, c, -1]
                stage.read.copy_(self.state[k, c, :width])
                stage.hidden.copy_(self.state[k, c, width:])
                for name in ("cell", "start", "memory"):
                    getattr(stage, name).copy_(getattr(self, name)[k, c])
            model.output.weight.copy_(self.output[k].roll(-width, 1))
            model.output.bias.copy_(self.output_bias[k])
            if model.derived is not None:
                for name in ("weight", "gain", "bias"):
                    getattr(model.derived, name).copy_(getattr(self, f"derived_{name}")[k])
                for name in ("running_mean", "running_var"):
                    getattr(model.derived, name).copy_(getattr(self, name)[k])
