"""Choice of the backend: the first in a fixed order that can train the model; and its trainer."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec

import torch

from manifests.schema import Training
from pipeline.training.backends import stacked
from pipeline.training.backends.base import Trainer
from pipeline.training.cascade import graph
from pipeline.training.cascade import trainer as cascade
from pipeline.training.data import SessionFeatures
from pipeline.training.determinism import RunRandom, flushed_denormals, matmul_precision
from pipeline.training.errors import TrainingError
from pipeline.training.models.base import MemoryModel
from pipeline.training.objective import Objective

BACKENDS = ("auto", "reference", "fast", "numba", "graph", "triton")
ORDER = ("triton", "graph", "numba", "fast", "reference")  # fastest first, for every C that BENCHMARKS.md measures


@dataclass(frozen=True)
class BackendChoice:
    """The backend to train with. fallback: one line that names each requested or tried backend that failed, or ""."""

    backend: str
    fallback: str = ""


def choose_backend(
    asked: str, models: Sequence[MemoryModel], features: SessionFeatures, trainings: Sequence[Training]
) -> BackendChoice:
    """Choose the backend to train with. Raises TrainingError for an unknown name.

    "auto" is the first of ``ORDER`` that supports the models and completes a step on copies of them, which detects a
    missing compiler or driver. Any other name is used if it is supported, and replaced by "auto" otherwise. The order
    is fixed, so that a run has the same results each time on one machine.
    """
    if asked not in BACKENDS:
        raise TrainingError(f"unknown backend {asked!r}; choose one of {', '.join(BACKENDS)}")
    able, fallback = able_backends(models, features, trainings), ""
    if asked in able:
        return BackendChoice(asked)
    if asked != "auto":
        fallback = f"backend {asked}: {_why_not(asked, models, features, trainings)}; "
    for name in able:
        if name == "reference" or (name == "fast" and features.device.type == "cpu" and cascade.why_not(models)):
            continue  # on a CPU, torch's own layers are faster than stacked models, which save kernel launches
        try:
            measured_step(models, features, trainings, name)()
            return BackendChoice(name, fallback + f"using {name}" if fallback else "")
        except Exception as error:  # any error of a compiler or driver; the reference needs neither
            why = next(iter(str(error).strip().splitlines()), "")
            fallback += f"backend {name} failed its first step ({type(error).__name__}: {why}); "
    return BackendChoice("reference", fallback + "using reference" if fallback else "")


def able_backends(models: Sequence[MemoryModel], features: SessionFeatures, trainings: Sequence[Training]) -> list[str]:
    """Return the backends that can train these models on this machine, fastest first; always includes the reference."""
    return [name for name in ORDER if not _why_not(name, models, features, trainings)]


def _why_not(name: str, models: Sequence[MemoryModel], features: SessionFeatures, trainings: Sequence[Training]) -> str:
    """Return why backend ``name`` cannot train these models on this machine, or ""."""
    if name == "reference":
        return ""
    reason = cascade.why_not(models)
    if reason and name in ("fast", "graph"):
        reason = stacked.why_not(models)
    if not reason and name in ("graph", "triton"):
        reason = graph.why_not(features, trainings, all(Objective(features, t).plain for t in trainings))
    if not reason and name == "numba":
        reason = _no_loops(features)
    if not reason and name == "triton" and find_spec("triton") is None:
        reason = "the package triton is not installed"
    return reason


def _no_loops(features: SessionFeatures) -> str:
    """Return why the compiled loops cannot run on these features, or ""."""
    if features.device.type != "cpu":
        return f"its loops run on a CPU, not on {features.device.type}"
    if find_spec("numba") is None:
        return "the package numba is not installed (extra `cpu`)"
    try:
        import pipeline.training.cascade.numba_loops  # noqa: F401
    except (ImportError, RuntimeError) as error:  # unsupported NumPy version; no writable cache folder
        return " ".join(str(error).split())
    return ""


def build_trainer(
    backend: str, models: Sequence[MemoryModel], features: SessionFeatures, trainings: Sequence[Training]
) -> Trainer:
    """Build a trainer of K models of one shape, with one training each. ``backend``: any of ``BACKENDS`` but "auto".

    Raises TrainingError if the backend cannot train these models on this machine.
    """
    if backend == "reference":
        return Trainer(models, features, trainings)
    if backend in ("fast", "graph"):
        kinds: tuple[type[Trainer], ...] = (cascade.FastTrainer, graph.GraphTrainer)
        if cascade.why_not(models):
            kinds = (stacked.StackedTrainer, stacked.StackedGraphTrainer)
        return kinds[backend == "graph"](models, features, trainings)
    if backend == "numba":
        from pipeline.training.cascade.turn_numba import NumbaTurn

        return cascade.FastTrainer(models, features, trainings, NumbaTurn())
    from pipeline.training.cascade.turn_triton import TritonTurn

    return graph.GraphTrainer(models, features, trainings, TritonTurn())


def measured_step(
    models: Sequence[MemoryModel], features: SessionFeatures, trainings: Sequence[Training], backend: str = "reference"
) -> Callable[[], None]:
    """Return a function that takes one full training step on copies of the models, for timing."""
    if not all(model.trainable for model in models):
        return lambda: None
    trainer = build_trainer(backend, copy.deepcopy(list(models)), features, trainings)
    size = min(trainings[0].batch_size, len(features))
    index = torch.arange(size, device=features.device).expand(len(models), -1)
    running, random = [True] * len(models), RunRandom([0] * len(models), features.device)

    def step() -> None:
        with flushed_denormals(), matmul_precision(trainings[0].matmul):
            trainer.step(index, random, running)
        if features.device.type == "cuda":
            torch.cuda.synchronize(features.device)

    return step
