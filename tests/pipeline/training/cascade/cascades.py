"""Cascades and batches at a generic state, and how far the fast path is from the reference on them."""

from __future__ import annotations

import copy
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pipeline.training.cascade.stacked import FastCascade
from pipeline.training.cascade.turn_ops import TurnOps
from pipeline.training.models import build_model
from pipeline.training.models.cm_ntm import CMNTM

SESSIONS, DIM, HIDDEN = 6, 12, 7
OUTPUTS, GRADIENTS = 1e-12, 1e-9  # what ``Differences`` may be in float64


def cascade(seed: int = 0, memory: str = "random", dtype: torch.dtype = torch.float64, **options: Any) -> CMNTM:
    """A reference model away from every symmetric point: at the public initialization all heads see equal rows.

    ``memory``: "random" rows that differ, or "constant" ones as the public initialization has them.
    """
    model = build_model("cm_ntm", {"hidden": HIDDEN, **options}, DIM, seed)
    assert isinstance(model, CMNTM)
    generator = torch.Generator().manual_seed(seed)
    model = model.to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator, dtype=dtype)
        for stage in model.stages:
            if memory == "random":
                stage.memory.copy_(torch.randn(stage.memory.shape, generator=generator, dtype=dtype))
    return model


def batch(turns: int, seed: int = 1, sessions: int = SESSIONS) -> tuple[Tensor, Tensor, Tensor]:
    """Queries [B, T, D] of ragged sessions padded by their last turn, their lengths, and weights of a loss."""
    generator = torch.Generator().manual_seed(seed)
    queries = torch.randn(sessions, turns, DIM, generator=generator, dtype=torch.float64)
    lengths = torch.arange(sessions) % turns + 1
    last = torch.minimum(torch.arange(turns), lengths[:, None] - 1)
    queries = queries.gather(1, last[..., None].expand_as(queries))
    return queries, lengths, torch.randn(queries.shape, generator=generator, dtype=torch.float64)


def gradients_of(fast: FastCascade, models: list[CMNTM]) -> list[dict[str, Tensor]]:
    """The stacked gradients under the reference's names, one dict a run."""
    holders = [copy.deepcopy(model) for model in models]
    carrier = copy.deepcopy(fast)
    with torch.no_grad():
        for parameter, source in zip(carrier.parameters(), fast.parameters(), strict=True):
            parameter.copy_(torch.zeros_like(source) if source.grad is None else source.grad)
    carrier.write_to(holders)
    return [dict(holder.named_parameters()) for holder in holders]


class Differences(NamedTuple):
    """Between the fast path and the reference, the largest over all runs.

    outputs, statistics: of any element of f' and of BatchNorm's running statistics. gradient: the norm of a parameter's
    difference in norms of its gradient; parameter: the one that it was found in.
    """

    outputs: float
    statistics: float
    gradient: float
    parameter: str


def _size(norm: Tensor) -> float:
    """A norm to compare with a bound: what is no number is above every bound."""
    return float(norm) if bool(norm.isfinite()) else math.inf


def differences(
    models: list[CMNTM],
    batches: list[tuple[Tensor, Tensor, Tensor]],
    ops: TurnOps | None = None,
    device: torch.device | str = "cpu",
) -> Differences:
    """One forward and backward of each reference model on its own batch, and of all of them at once."""
    models = [model.to(device) for model in models]
    batches = [tuple(part.to(device) for part in one) for one in batches]
    fast = FastCascade(models, ops)
    outputs = fast(torch.stack([queries for queries, _, _ in batches]))
    (outputs * torch.stack([weights for _, _, weights in batches])).sum().backward()
    found = gradients_of(fast, models)
    after = [copy.deepcopy(model) for model in models]
    fast.write_to(after)
    of_outputs, of_statistics, of_gradients = [], [0.0], []
    for k, (model, (queries, lengths, weights)) in enumerate(zip(models, batches, strict=True)):
        expected = model(queries, lengths)
        (expected * weights).sum().backward()
        of_outputs.append(_size((outputs[k] - expected).detach().abs().max()))
        scale = max(float(p.grad.norm()) for p in model.parameters() if p.grad is not None)
        for name, parameter in model.named_parameters():
            wanted = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            # A gradient that is zero but for rounding has no norm to compare with; the model's largest one serves.
            norm = max(float(wanted.norm()), 1e-6 * scale)
            of_gradients.append((_size((found[k][name] - wanted).detach().norm()) / norm, f"{name} of run {k}"))
        for buffer, kept in zip(model.buffers(), after[k].buffers(), strict=True):
            of_statistics.append(_size((buffer - kept).abs().max()))
    return Differences(max(of_outputs), max(of_statistics), *max(of_gradients))
