"""Which backend trains a model fastest here, by a measured step of each that can."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec

import torch

from manifests.schema import Training
from pipeline.training.data import SessionFeatures
from pipeline.training.determinism import flushed_denormals, matmul_precision
from pipeline.training.errors import TrainingError
from pipeline.training.models.base import MemoryModel
from pipeline.training.randomness import RunRandom
from pipeline.training.threads import ThreadChoice, choose_threads

BACKENDS = ("auto", "reference", "fast", "numba", "graph", "triton")


@dataclass(frozen=True)
class BackendChoice:
    """``backend`` was chosen, with ``threads`` CPU threads; milliseconds of a step by backend, where measured.

    fallback: one line when what was asked for cannot run here, or what was tried failed; else empty.
    """

    backend: str
    threads: ThreadChoice | None = None
    milliseconds: dict[str, float] = field(default_factory=dict)
    fallback: str = ""


def choose_backend(
    asked: str,
    models: Sequence[MemoryModel],
    features: SessionFeatures,
    trainings: Sequence[Training],
    threads: Sequence[int] = (),
) -> BackendChoice:
    """The backend to train with, and on a CPU the number of threads, which torch is then set to.

    "auto" measures a step of each backend that can, and leaves out one whose step fails; another name is taken where it can
    run, and else what "auto" takes, with the reason in ``fallback``. ``threads``: candidates; the machine's when empty, and one means no measurement.

    Raises TrainingError for an unknown name.
    """
    if asked not in BACKENDS:
        raise TrainingError(f"unknown backend {asked!r}; choose one of {', '.join(BACKENDS)}")
    able, fallback = able_backends(models, features, trainings), ""
    if asked != "auto":
        if asked in able:
            able = [asked]
        else:
            fallback = f"backend {asked}: {_why_not(asked, models, features, trainings)}; "
    on_cpu = features.device.type == "cpu"
    if len(able) == 1 and not (on_cpu and len(threads) != 1):
        (name,) = able
        chosen = choose_threads(lambda: None, among=threads) if on_cpu else None
        return BackendChoice(name, chosen, fallback=fallback + f"using {name}" if fallback else "")
    timed: dict[str, tuple[float, ThreadChoice | None]] = {}
    for name in able:
        try:
            step = measured_step(models, features, trainings, name)
            choice = choose_threads(step, among=threads) if on_cpu else None
            best = min(choice.milliseconds.values()) if choice and choice.milliseconds else _milliseconds(step)
        except Exception as error:  # a compiler or a driver that this machine lacks; the reference needs none
            if name in (asked, "reference"):
                raise
            fallback += f"backend {name} failed its measured step ({type(error).__name__}: {_first_line(error)}); "
            continue
        timed[name] = (best, choice)
    name = min(timed, key=lambda n: timed[n][0])
    if timed[name][1] is not None:
        torch.set_num_threads(timed[name][1].threads)
    return BackendChoice(
        name, timed[name][1], {n: ms for n, (ms, _) in timed.items()}, fallback + f"using {name}" if fallback else ""
    )


def able_backends(models: Sequence[MemoryModel], features: SessionFeatures, trainings: Sequence[Training]) -> list[str]:
    """The backends that can train these models on this machine; the reference always can."""
    return [name for name in BACKENDS[1:] if not _why_not(name, models, features, trainings)]


def _why_not(name: str, models: Sequence[MemoryModel], features: SessionFeatures, trainings: Sequence[Training]) -> str:
    """Why backend ``name`` cannot train these models here; empty where it can."""
    if name == "reference":
        return ""
    from pipeline.training.backends import fast, graph
    from pipeline.training.objective import Objective

    reason = fast.why_not(models)
    if not reason and name in ("graph", "triton"):
        reason = graph.why_not(features, trainings, all(Objective(features, t).plain for t in trainings))
    if not reason and name == "numba":
        reason = _no_loops(features)
    if not reason and name == "triton" and find_spec("triton") is None:
        reason = "the package triton is not installed"
    return reason


def _no_loops(features: SessionFeatures) -> str:
    """Why the compiled loops cannot run on these features; empty where they can."""
    if features.device.type != "cpu":
        return f"its loops run on a CPU, not on {features.device.type}"
    if find_spec("numba") is None:
        return "the package numba is not installed (extra `cpu`)"
    try:
        import pipeline.training.fast.loops  # noqa: F401
    except (ImportError, RuntimeError) as error:  # another NumPy than it knows; nowhere to keep what it compiles
        return " ".join(str(error).split())
    return ""


def measured_step(
    models: Sequence[MemoryModel], features: SessionFeatures, trainings: Sequence[Training], backend: str = "reference"
) -> Callable[[], None]:
    """A full training step on copies of the models, to measure with; the models themselves are not touched."""
    from pipeline.training.backends import build_trainer

    if not all(model.trainable for model in models):
        return lambda: None
    trainer = build_trainer(backend, copy.deepcopy(list(models)), features, trainings)
    size = min(trainings[0].batch_size, len(features))
    index = torch.arange(size, device=features.device).expand(len(models), -1)
    running = [True] * len(models)

    def step() -> None:
        with flushed_denormals(), matmul_precision(trainings[0].matmul):
            trainer.step(index, RunRandom([0] * len(models), features.device), running)
        if features.device.type == "cuda":
            torch.cuda.synchronize(features.device)

    return step


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "")


def _milliseconds(step: Callable[[], None], repeats: int = 5) -> float:
    step()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        step()
        times.append(time.perf_counter() - started)
    return min(times) * 1e3
