"""Training steps to measure, their floating-point operations, and the matrix product that gives the lower bound."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from manifests.schema import Session, Training, Turn
from pipeline.bench._public_style import PublicStyleCascade
from pipeline.training.backends.base import adam, adam_settings
from pipeline.training.cascade.stacked import FastCascade
from pipeline.training.data import SessionFeatures
from pipeline.training.determinism import flushed_denormals, matmul_precision
from pipeline.training.losses import turnwise_cross_entropy
from pipeline.training.models import MemoryModel
from pipeline.training.models.cm_ntm import CMNTM


def random_features(batch: int, turns: int, dim: int) -> SessionFeatures:
    """Return one batch of sessions of ``turns`` turns, each with its own unit rows."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.arange(batch * turns).view(batch, turns)
    session = Session(
        id="bench", category="bench", split="train", turns=(Turn(reference="a", captions=("b",)),), target="c"
    )
    queries, targets = (
        torch.nn.functional.normalize(torch.randn(batch * turns, dim, generator=generator), dim=-1) for _ in range(2)
    )
    return SessionFeatures(queries, targets, rows, rows, rows[:, 0], torch.full((batch,), turns), (session,) * batch)


def reference_step(
    model: MemoryModel, features: SessionFeatures, training: Training, compiled: bool = False
) -> Callable[[], None]:
    """Return an autograd step on a copy of the model; if compiled, the first step compiles, without a cached graph."""
    model = copy.deepcopy(model).train()
    forward = torch.compile(model, options={"fx_graph_cache": False}) if compiled else model
    return _step(forward, list(model.parameters()), features, training)


def public_step(model: MemoryModel, features: SessionFeatures, training: Training) -> Callable[[], None]:
    """Return a step of the public-style cascade with the same weights."""
    assert isinstance(model, CMNTM)
    cascade = PublicStyleCascade.from_reference(model)
    return _step(cascade, [p for p in cascade.parameters() if p.requires_grad], features, training, flush=False)


def _step(
    forward: Callable[[Tensor, Tensor], Tensor],
    parameters: list[Tensor],
    features: SessionFeatures,
    training: Training,
    flush: bool = True,
) -> Callable[[], None]:
    optimizer = adam([{**adam_settings(training), "params": parameters}])
    index = torch.arange(len(features), device=features.device)

    def step() -> None:
        queries, targets, lengths = features.batch(index)
        loss = turnwise_cross_entropy(forward(queries, lengths), targets, None, training.scale)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def flushed() -> None:
        with flushed_denormals():
            step()

    return flushed if flush else step


class Product(NamedTuple):
    """One large matrix product and its floating-point operations."""

    step: Callable[[], Tensor]
    flops: float


def gemm_step(rows: int, dim: int, device: torch.device, dtype: torch.dtype = torch.float32) -> Product:
    """Return the product [rows, dim] x [dim, 3 dim], about the largest of a step."""
    left, right = (torch.ones(*shape, device=device, dtype=dtype) for shape in ((rows, dim), (dim, 3 * dim)))
    return Product(lambda: left @ right, 2 * rows * dim * 3 * dim)


def rounding(model: MemoryModel, features: SessionFeatures, matmul: str) -> tuple[float, float]:
    """Return the change due to ``matmul`` in f' and in the gradient of all parameters, relative to their norms."""
    queries, targets, _ = features.batch(torch.arange(len(features), device=features.device))

    assert isinstance(model, CMNTM)

    def of(precision: str) -> tuple[Tensor, Tensor]:
        cascade = FastCascade([model])
        with matmul_precision(precision):
            predicted = cascade(queries[None])[0]
            turnwise_cross_entropy(predicted, targets).backward()
        return predicted.detach(), torch.cat([p.grad.flatten() for p in cascade.parameters() if p.grad is not None])

    outputs, gradient = (
        float((one - other).norm() / one.norm()) for one, other in zip(of("highest"), of(matmul), strict=True)
    )
    return outputs, gradient


def flops_of_step(model: MemoryModel, features: SessionFeatures) -> float:
    """Return the floating-point operations of the matrix products of a reference step, forward and backward."""
    queries, targets, lengths = features.batch(torch.arange(len(features), device=features.device))
    model = copy.deepcopy(model).train()
    with FlopCounterMode(display=False) as counter:
        turnwise_cross_entropy(model(queries, lengths), targets).backward()
    return float(counter.get_total_flops())
