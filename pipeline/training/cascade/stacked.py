"""K cascades of one shape as one model, which the fast path trains instead of the reference models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.training.cascade.backward import backward
from pipeline.training.cascade.forward import forward
from pipeline.training.cascade.parameters import StackedCascade
from pipeline.training.cascade.products import product
from pipeline.training.cascade.saved_activations import SavedActivations, Weights
from pipeline.training.cascade.turn_ops import TurnOps
from pipeline.training.cascade.turn_torch import TorchTurn
from pipeline.training.errors import TrainingError
from pipeline.training.models._stage import TRACKED_TURNS, DerivedFeatures
from pipeline.training.models.cm_ntm import CMNTM


class CascadeFunction(torch.autograd.Function):
    """The cascade with its hand-written backward pass: (saved, ops, queries, derived, *Weights) -> outputs.

    queries: [K, T, B, D], cached features, so without a gradient; derived: [K, T, B, C-1, D] or None; outputs:
    [r^C; h^C], [K, T, B, M + H].
    """

    @staticmethod
    def forward(
        ctx: Any, saved: SavedActivations, ops: TurnOps, queries: Tensor, derived: Tensor | None, *weights: Tensor
    ) -> Tensor:
        ctx.saved, ctx.ops, ctx.weights = saved, ops, Weights(*weights)
        saved.uses += 1
        ctx.use = saved.uses
        return forward(queries, derived, ctx.weights, saved, ops)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_outputs: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.use != ctx.saved.uses:
            raise RuntimeError("another forward of the same shape came before this backward; call backward first")
        learned_memory = ctx.needs_input_grad[-1]
        return None, None, None, *backward(d_outputs, ctx.weights, ctx.saved, ctx.ops, learned_memory)


class LinearFunction(torch.autograd.Function):
    """[K, R, I] @ [K, O, I] transposed -> [K, R, O]. Unlike autograd's, the weight gradient has the weight's layout."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(inputs, weight)
        return product(inputs, weight.mT)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_outputs: Tensor) -> tuple[Tensor | None, Tensor]:
        inputs, weight = ctx.saved_tensors
        return product(d_outputs, weight) if ctx.needs_input_grad[0] else None, product(d_outputs.mT, inputs)


class FastCascade(StackedCascade):
    """Stacked cascade whose outputs and gradients equal those of each of the K reference models on its own batch."""

    def __init__(self, models: Sequence[CMNTM], ops: TurnOps | None = None):
        """Stack the models. ``ops``: operations of a turn; ``TorchTurn`` when None."""
        super().__init__(models)
        self._ops = ops or TorchTurn()
        self._constant = self.constant
        self._residuals = [model.residual for model in models]  # nothing in them is trained
        self._traces: dict[tuple[Any, ...], SavedActivations] = {}

    def forward(self, queries: Tensor, inputs: Tensor | None = None) -> Tensor:
        """Compute f'_qry [K, B, T, D] from f_qry [K, B, T, D]. In training mode, BatchNorm uses the batch's statistics.

        ``inputs``: f_qry after dropout, [K, B, T, D], if each run draws its own; None draws it here. The backward pass
        must run before the next forward pass of the same shape, because both use the same buffers.
        """
        if inputs is None:
            inputs = F.dropout(queries, self.options.dropout, self.training)
        by_turn = inputs.transpose(1, 2)
        derived = None if self.shape.stages == 1 else self._derived(inputs)
        own = {name: getattr(self, name) for name in Weights._fields if name != "gate_bias"}
        weights = Weights(gate_bias=self.gate_biases.sum(2), **own)
        outputs = CascadeFunction.apply(self._trace(by_turn), self._ops, by_turn, derived, *weights)
        flat = LinearFunction.apply(outputs.flatten(1, 2), self.output) + self.output_bias.unsqueeze(1)
        predicted = flat.unflatten(1, by_turn.shape[1:3]).transpose(1, 2)
        if not self.options.residual:
            return predicted
        return torch.stack([add(q, p) for add, q, p in zip(self._residuals, queries, predicted, strict=True)])

    def _trace(self, by_turn: Tensor) -> SavedActivations:
        runs, turns, batch, _ = by_turn.shape
        key = (turns, batch, by_turn.dtype, by_turn.device)
        if key not in self._traces:
            self._traces[key] = SavedActivations.empty(self.shape, runs, turns, batch, by_turn, self._constant)
        return self._traces[key]

    def _derived(self, queries: Tensor) -> Tensor:
        """Compute f_drv^1..C-1, [K, T, B, C-1, D], from [K, B, T, D]: one product, then BatchNorm per run and turn."""
        runs, batch, turns, dim = queries.shape
        if self.training and batch < 2:
            raise TrainingError("a training batch of one session has no batch statistics; give at least two sessions")
        product = LinearFunction.apply(queries.flatten(1, 2), self.derived_weight)  # [K, B T, (C-1) D]
        rows = product.view(runs, batch, -1).transpose(0, 1).reshape(batch, -1)  # all runs' features side by side
        normal = self._normal(rows, turns).view(batch, runs, turns, self.shape.stages - 1, dim)
        return normal.permute(1, 2, 0, 3, 4)

    def _normal(self, rows: Tensor, turns: int) -> Tensor:
        """Normalize [B, K T (C-1) D] with the statistics of each run and turn; training updates running statistics."""
        mean, var = _by_turn(self.running_mean, turns), _by_turn(self.running_var, turns)
        gain, bias = (one.unsqueeze(1).expand_as(mean).reshape(-1) for one in (self.derived_gain, self.derived_bias))
        momentum, eps = DerivedFeatures.momentum, DerivedFeatures.eps
        normal = F.batch_norm(rows, mean.view(-1), var.view(-1), gain, bias, self.training, momentum, eps)
        if self.training:  # batch_norm has updated ``mean`` and ``var`` in place
            with torch.no_grad():
                for kept, new in ((self.running_mean, mean), (self.running_var, var)):
                    kept[:, :turns] = new[:, :TRACKED_TURNS]
                    kept[:, turns:] = new[:, -1:]
        return normal


def _by_turn(kept: Tensor, turns: int) -> Tensor:
    """Copy the statistics [K, tracked turns, F] to ``turns`` turns; turns beyond the tracked ones use the last."""
    return torch.cat([kept[:, :turns], kept[:, -1:].expand(-1, max(0, turns - kept.shape[1]), -1)], 1)
