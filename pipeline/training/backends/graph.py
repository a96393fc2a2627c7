"""The fast path with each training step replayed as one CUDA graph: batch, loss, backward, clipping and Adam.

Nothing in an epoch waits for the device: losses are read when the epoch has ended. A run whose loss is no number is
found then; the reference and the fast path find it in the step itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from manifests.schema import Training
from pipeline.training.backends.fast import FastTrainer
from pipeline.training.data import SessionFeatures
from pipeline.training.errors import TrainingError
from pipeline.training.fast.chain import Chain
from pipeline.training.models.base import MemoryModel
from pipeline.training.randomness import RunRandom

WARM_UP = 3  # steps before a capture, as CUDA graphs need; what they changed is undone


def why_not(features: SessionFeatures, trainings: Sequence[Training], objectives_plain: bool) -> str:
    """Why a step cannot be captured; empty where it can."""
    if features.device.type != "cuda":
        return f"CUDA graphs need a CUDA device, not {features.device.type}"
    if not objectives_plain or any(t.drop_turns or t.recombine for t in trainings):
        return "a training part of these settings has sizes that change from step to step"
    return ""


class GraphTrainer(FastTrainer):
    """One graph for each batch size; the first full batch is captured, an epoch's smaller last one too."""

    capturable = True

    def __init__(
        self,
        models: Sequence[MemoryModel],
        features: SessionFeatures,
        trainings: Sequence[Training],
        chain: Chain | None = None,
    ):
        super().__init__(models, features, trainings, chain)
        reason = why_not(features, trainings, all(o.plain for o in self.objectives))
        if reason:
            raise TrainingError(f"no graph: {reason}; use the backend fast")
        self._graphs: dict[tuple[int, tuple[bool, ...]], tuple[Any, Tensor, Tensor]] = {}

    def step(self, index: Tensor, random: RunRandom, running: Sequence[bool], progress: float = 1.0) -> Tensor:
        key = (index.shape[1], tuple(running))
        if key not in self._graphs:
            self._graphs[key] = self._capture(index.clone(), running)
        graph, place, losses = self._graphs[key]
        place.copy_(index)
        graph.replay()
        return losses.clone()

    def _whole_step(self, index: Tensor, running: Sequence[bool]) -> Tensor:
        losses = self._losses(index, None, 1.0)
        losses.sum().backward()
        self._share_gradients()
        for run, going in enumerate(running):
            if going:
                self._descend(run)
        return losses.detach()

    def _capture(self, index: Tensor, running: Sequence[bool]) -> tuple[Any, Tensor, Tensor]:
        state = self._state()
        held = [t.detach().clone() for t in state]
        started = [bool(optimizer.state) for optimizer in self.optimizers]
        stream = torch.cuda.Stream(index.device)
        stream.wait_stream(torch.cuda.current_stream(index.device))
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                self._whole_step(index, running)
        torch.cuda.current_stream(index.device).wait_stream(stream)
        self._restore(state, held, started)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            losses = self._whole_step(index, running)
        return graph, index, losses

    def _state(self) -> list[Tensor]:
        """Everything that a step changes: weights, statistics, and what the optimizers keep."""
        kept = [v for o in self.optimizers for s in o.state.values() for v in s.values() if isinstance(v, Tensor)]
        return [*(p.detach() for p in self._stacked), *self.cascade.buffers(), *kept]

    def _restore(self, state: list[Tensor], held: list[Tensor], started: list[bool]) -> None:
        with torch.no_grad():
            for tensor, value in zip(state, held, strict=True):
                tensor.copy_(value)
            for optimizer, there in zip(self.optimizers, started, strict=True):
                if not there:  # its state was made by the warm-up: zero is how Adam starts
                    for kept in optimizer.state.values():
                        for value in kept.values():
                            value.zero_()
