"""A training step to time, in this process or in one of its own: its seconds, peak memory and operations."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from manifests.schema import Training
from pipeline.bench._steps import public_step, random_features, reference_step
from pipeline.core.device import seconds_of
from pipeline.training.backends.choice import measured_step
from pipeline.training.data import SessionFeatures
from pipeline.training.models import MemoryModel, build_model

_subject: Here  # of a process of ``Apart``


@dataclass(frozen=True)
class Sizes:
    """Sizes of every subject, as plain values, so that another process can build it too."""

    batch: int
    turns: int
    dim: int
    slots: int
    hidden: int
    runs: int
    device: str

    def build(self, stages: int) -> tuple[MemoryModel, SessionFeatures, Training]:
        """Return the model, one batch of random features, and the training options."""
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
    """A subject in this process. A context manager only for the same interface as ``Apart``."""

    def __init__(self, step: Callable[[], object], device: torch.device):
        self._step, self._device = step, device

    @classmethod
    def of(cls, sizes: Sizes, stages: int, name: str) -> Here:
        return cls(sizes.step(stages, name), torch.device(sizes.device))

    def seconds(self) -> float:
        """Return the seconds of one step."""
        return seconds_of(self._step, self._device)

    def peak(self) -> int | None:
        """Return the peak memory of a step in bytes; see ``peak_bytes``."""
        return peak_bytes(self._step, self._device)

    def operations(self) -> int:
        """Return the number of operators that a step dispatches, with its backward; kernels outside torch do not count."""
        with _Counted() as counted:
            self._step()
        return counted.operations

    def __enter__(self) -> Here:
        return self

    def __exit__(self, *error: object) -> None:
        pass


class Apart(Here):
    """A subject in a process of its own, which sleeps between its steps."""

    def __init__(self, sizes: Sizes, stages: int, name: str, threads: int):
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(1, context, _begin, (sizes, stages, name, threads))

    def seconds(self) -> float:
        return self._pool.submit(_ask, "seconds").result()

    def peak(self) -> int | None:
        return self._pool.submit(_ask, "peak").result()

    def operations(self) -> int:
        return self._pool.submit(_ask, "operations").result()

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown()


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
