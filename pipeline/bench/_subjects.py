"""Training steps to time, in this process or in one of their own: seconds, peak memory, operations; and their bounds."""

from __future__ import annotations

import copy
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from manifests.schema import Session, Training, Turn
from pipeline.bench._public_style import PublicStyleCascade
from pipeline.core.device import seconds_of
from pipeline.training.backends.base import adam, adam_settings
from pipeline.training.backends.choice import measured_step
from pipeline.training.cascade.stacked import FastCascade
from pipeline.training.data import SessionFeatures
from pipeline.training.determinism import flushed_denormals, matmul_precision
from pipeline.training.losses import turnwise_cross_entropy
from pipeline.training.models import MemoryModel, build_model
from pipeline.training.models.cm_ntm import CMNTM


def random_features(batch: int, turns: int, dim: int) -> SessionFeatures:
    """Return one batch of sessions of ``turns`` turns, each with its own unit rows."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.arange(batch * turns).view(batch, turns)
    turn = Turn(reference="a", captions=("b",))
    session = Session(id="bench", category="bench", split="train", turns=(turn,), target="c")
    drawn = (torch.randn(batch * turns, dim, generator=generator) for _ in range(2))
    queries, targets = (torch.nn.functional.normalize(rows_of, dim=-1) for rows_of in drawn)
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
        with flushed_denormals() if flush else nullcontext():
            queries, targets, lengths = features.batch(index)
            loss = turnwise_cross_entropy(forward(queries, lengths), targets, None, training.scale)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return step


def gemm_step(
    rows: int, dim: int, device: torch.device, dtype: torch.dtype = torch.float32
) -> tuple[Callable[[], Tensor], float]:
    """Return the product [rows, dim] x [dim, 3 dim], about the largest of a step, and its floating-point operations."""
    left, right = (torch.ones(*shape, device=device, dtype=dtype) for shape in ((rows, dim), (dim, 3 * dim)))
    return lambda: left @ right, 2 * rows * dim * 3 * dim


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

    pairs = zip(of("highest"), of(matmul), strict=True)
    outputs, gradient = (float((one - other).norm() / one.norm()) for one, other in pairs)
    return outputs, gradient


def flops_of_step(model: MemoryModel, features: SessionFeatures) -> float:
    """Return the floating-point operations of the matrix products of a reference step, forward and backward."""
    queries, targets, lengths = features.batch(torch.arange(len(features), device=features.device))
    model = copy.deepcopy(model).train()
    with FlopCounterMode(display=False) as counter:
        turnwise_cross_entropy(model(queries, lengths), targets).backward()
    return float(counter.get_total_flops())


_subject: Here  # of a process of ``Apart``


@dataclass(frozen=True)
class Sizes:
    """Sizes of every subject, as plain values, so that another process can build it too."""

    batch: int
    turns: int
    dim: int
    slots: int
    hidden: int
    device: str

    def build(self, stages: int) -> tuple[MemoryModel, SessionFeatures, Training]:
        options = {"stages": stages, "slots": self.slots, "hidden": self.hidden}
        features = random_features(self.batch, self.turns, self.dim).to(self.device)
        return build_model("cm_ntm", options, self.dim).to(self.device), features, Training(batch_size=self.batch)

    def step(self, stages: int, name: str) -> Callable[[], object]:
        """Return one training step of the subject ``name``: "public style", "reference", "compiled", a backend,
        "fast K=5", or a backend with the rounding of its products, such as "fast medium"."""
        model, features, training = self.build(stages)
        if name == "public style":
            return public_step(model, features, training)
        if name in ("reference", "compiled"):
            return reference_step(model, features, training, compiled=name == "compiled")
        backend, _, runs = name.partition(" K=")
        count = int(runs or 1)
        backend, _, matmul = backend.partition(" ")
        if matmul:
            training = training.model_copy(update={"matmul": matmul})
        return measured_step([model] * count, features, [training] * count, backend)


class Here:
    """A subject in this process."""

    def __init__(self, step: Callable[[], object], device: torch.device):
        self._step, self._device = step, device

    @classmethod
    def of(cls, sizes: Sizes, stages: int, name: str) -> Here:
        return cls(sizes.step(stages, name), torch.device(sizes.device))

    def seconds(self) -> float:
        return seconds_of(self._step, self._device)

    def peak(self) -> int | None:
        """Return the peak memory of a step in bytes; see ``peak_bytes``."""
        return peak_bytes(self._step, self._device)

    def operations(self) -> int:
        """Return the number of operators that a step dispatches, with its backward; kernels outside torch do not count."""
        with _Counted() as counted:
            self._step()
        return counted.operations


class Apart(Here):
    """A subject in a process of its own, which sleeps between its steps, until ``stack`` is closed."""

    def __init__(self, stack: ExitStack, sizes: Sizes, stages: int, name: str, threads: int):
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(1, context, _begin, (sizes, stages, name, threads))
        self._pool = stack.enter_context(pool)

    def seconds(self) -> float:
        return self._pool.submit(_ask, "seconds").result()

    def peak(self) -> int | None:
        return self._pool.submit(_ask, "peak").result()

    def operations(self) -> int:
        return self._pool.submit(_ask, "operations").result()


def _begin(sizes: Sizes, stages: int, name: str, threads: int) -> None:
    global _subject
    if threads:
        torch.set_num_threads(threads)
    _subject = Here.of(sizes, stages, name)


def _ask(what: str) -> Any:
    return getattr(_subject, what)()


class _Counted(TorchDispatchMode):
    """Count torch's operators except views, which compute nothing."""

    operations = 0

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operations += not operator.is_view
        return operator(*args, **(kwargs or {}))


def peak_bytes(call: Callable[[], object], device: torch.device) -> int | None:
    """Return bytes at the peak of ``call`` above the previous usage; None if the system does not report it."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # Linux: reset the peak
        before = _status("VmRSS")
        call()
        return max(0, _status("VmHWM") - before)
    except (OSError, KeyError):
        return None


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(name)
