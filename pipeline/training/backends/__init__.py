"""Backends that compute training steps: the reference, the CM-NTM's fast path in several forms, and stacked models."""

from __future__ import annotations

from collections.abc import Sequence

from manifests.schema import Training
from pipeline.training.backends.base import Trainer
from pipeline.training.backends.choice import BACKENDS, BackendChoice, choose_backend
from pipeline.training.data import SessionFeatures
from pipeline.training.models.base import MemoryModel


def build_trainer(
    backend: str, models: Sequence[MemoryModel], features: SessionFeatures, trainings: Sequence[Training]
) -> Trainer:
    """Build a trainer of K models of one shape, with one training each. ``backend``: any of ``BACKENDS`` but "auto".

    Raises TrainingError if the backend cannot train these models on this machine.
    """
    if backend == "reference":
        return Trainer(models, features, trainings)
    from pipeline.training.backends.stacked import StackedGraphTrainer, StackedTrainer
    from pipeline.training.cascade.graph import GraphTrainer
    from pipeline.training.cascade.trainer import FastTrainer, why_not

    if why_not(models) and backend in ("fast", "graph"):
        return (StackedTrainer if backend == "fast" else StackedGraphTrainer)(models, features, trainings)
    if backend == "numba":
        from pipeline.training.cascade.turn_numba import NumbaTurn

        return FastTrainer(models, features, trainings, NumbaTurn())
    if backend == "triton":
        from pipeline.training.cascade.turn_triton import TritonTurn

        return GraphTrainer(models, features, trainings, TritonTurn())
    kind = FastTrainer if backend == "fast" else GraphTrainer
    return kind(models, features, trainings)


__all__ = ["BACKENDS", "BackendChoice", "Trainer", "build_trainer", "choose_backend"]
