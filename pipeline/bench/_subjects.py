"""A training step to time: in this process, or in a separate process that steps on request."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, Protocol

import torch

from manifests.schema import Training
from pipeline.bench._memory import peak_bytes
from pipeline.bench._operations import operations
from pipeline.bench._steps import public_step, random_features, reference_step
from pipeline.core.device import seconds_of
from pipeline.training.backends.choice import measured_step
from pipeline.training.data import SessionFeatures
from pipeline.training.models import MemoryModel, build_model


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


class Subject(Protocol):
    """Interface of a timed training step, a context manager."""

    def __enter__(self) -> Subject: ...

    def __exit__(self, *error: object) -> None: ...

    def seconds(self) -> float:
        """Return the seconds of one step."""

    def peak(self) -> int | None:
        """Return the peak memory of a step in bytes; see ``peak_bytes``."""

    def operations(self) -> int:
        """Return the number of operations of one step; see ``operations``."""


class Here:
    """A subject in this process. A context manager only for the same interface as ``Apart``."""

    def __init__(self, step: Callable[[], object], device: torch.device):
        self._step, self._device = step, device

    @classmethod
    def of(cls, sizes: Sizes, stages: int, name: str) -> Here:
        return cls(sizes.step(stages, name), torch.device(sizes.device))

    def seconds(self) -> float:
        return seconds_of(self._step, self._device)

    def peak(self) -> int | None:
        return peak_bytes(self._step, self._device)

    def operations(self) -> int:
        return operations(self._step)

    def __enter__(self) -> Here:
        return self

    def __exit__(self, *error: object) -> None:
        pass


class Apart:
    """A subject in a separate process, which sleeps between its steps."""

    def __init__(self, sizes: Sizes, stages: int, name: str, threads: int):
        context = multiprocessing.get_context("spawn")
        self._name, (self._line, theirs) = name, context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, sizes, stages, name, threads), daemon=True)
        self._process.start()
        theirs.close()

    def seconds(self) -> float:
        return self._ask("seconds")

    def peak(self) -> int | None:
        return self._ask("peak")

    def operations(self) -> int:
        return self._ask("operations")

    def _ask(self, what: str) -> Any:
        self._line.send(what)
        try:
            return self._line.recv()
        except (EOFError, ConnectionResetError):
            raise RuntimeError(f"the process of subject {self._name!r} ended; its error is above") from None

    def __enter__(self) -> Apart:
        return self

    def __exit__(self, *error: object) -> None:
        self._line.close()
        self._process.join(5)
        self._process.kill()  # if it has not ended by itself, on a busy machine
        self._process.join()


def _serve(line: Connection, sizes: Sizes, stages: int, name: str, threads: int) -> None:
    if threads:
        torch.set_num_threads(threads)
    subject = Here.of(sizes, stages, name)
    try:
        while True:
            line.send(getattr(subject, line.recv())())
    except EOFError:  # the parent closed the pipe
        return
