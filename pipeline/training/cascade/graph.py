"""The fast path with each training step replayed as one CUDA graph: batch, loss, backward, clipping and Adam.

The host does not synchronize within an epoch: losses are read at its end, and non-finite losses are detected then; the
reference and the fast path detect them in the step. Dropout is drawn before each replay, from each run's own random
state, because a captured draw would be shared by all runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from manifests.schema import Training
from pipeline.training.cascade.trainer import FastTrainer
from pipeline.training.data import SessionFeatures
from pipeline.training.determinism import RunRandom
from pipeline.training.errors import TrainingError
from pipeline.training.objective import Step, losses_of

WARM_UP = 3  # steps before a capture, required by CUDA graphs; their changes are undone


def why_not(features: SessionFeatures, trainings: Sequence[Training], objectives_plain: bool) -> str:
    """Return why a step cannot be captured, or ""."""
    if features.device.type != "cuda":
        return f"CUDA graphs need a CUDA device, not {features.device.type}"
    if not objectives_plain or any(t.drop_turns or t.recombine for t in trainings):
        return "a training part of these settings has sizes that change from step to step"
    return ""


@contextmanager
def side_stream(device: torch.device) -> Iterator[None]:
    """Run the context on a separate stream, as required before a capture, synchronized with the current stream."""
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        yield
    torch.cuda.current_stream(device).wait_stream(stream)


def record(step: Callable[[], Tensor]) -> tuple[Callable[[], object], Tensor]:
    """Capture ``step`` as a CUDA graph without running it; return the replay function and its result tensor."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        return graph.replay, step()


class Captured(NamedTuple):
    """A captured step. ``replay`` reads sessions [K, B] and drawn (e.g. dropout) in place, and writes losses [K]."""

    replay: Callable[[], object]
    sessions: Tensor
    drawn: tuple[Tensor, ...]
    losses: Tensor


class GraphTrainer(FastTrainer):
    """Trainer with one graph per batch size: one for full batches, one for an epoch's smaller last batch."""

    capturable = True

    def __init__(self, *given: Any):
        """Set up as ``FastTrainer``. Raises TrainingError if a step cannot be captured."""
        super().__init__(*given)
        if reason := why_not(self.features, self.trainings, all(o.plain for o in self.objectives)):
            raise TrainingError(f"no graph: {reason}; use the backend fast")
        self._graphs: dict[tuple[Any, ...], Captured] = {}

    def step(self, index: Tensor, random: RunRandom, running: Sequence[bool], progress: float = 1.0) -> Tensor:
        first = self.models[0]
        key = (index.shape[1], tuple(running), first.phase(progress), first.rate(progress))
        drawn = self._draw(index, random, progress)
        if key not in self._graphs:
            self.set_rates(progress)  # a captured step keeps them
            self._graphs[key] = self._captured(index.clone(), drawn, running, progress)
        step = self._graphs[key]
        for held, value in zip((step.sessions, *step.drawn), (index, *drawn), strict=True):
            held.copy_(value)
        step.replay()
        return step.losses.clone()

    def _draw(self, index: Tensor, random: RunRandom, progress: float) -> tuple[Tensor, ...]:
        """Draw the random numbers of a step on the sessions ``index``, from each run's state: its dropout factors."""
        rate = self.cascade.options.dropout
        if not rate:
            return ()
        kept = self.features.queries.new_ones(*index.shape, self.features.turns, self.features.dim)
        for run in range(len(index)):
            with random.of(run):
                kept[run] = F.dropout(kept[run], rate, True)
        return (kept,)

    def _whole_step(
        self, index: Tensor, drawn: tuple[Tensor, ...], running: Sequence[bool], progress: float = 1.0
    ) -> Tensor:
        steps = [o.step(m, i, progress) for o, m, i in zip(self.objectives, self.models, index, strict=True)]
        losses = self._step_losses(steps, drawn)
        self._backward(losses)
        self._descend(running)
        return losses.detach()

    def _step_losses(self, steps: Sequence[Step], drawn: tuple[Tensor, ...]) -> Tensor:
        queries = torch.stack([step.batch.queries for step in steps])
        predicted = self._predicted(queries, queries * drawn[0] if drawn else queries)
        return losses_of(self.objectives, steps, predicted)

    def _captured(self, index: Tensor, drawn: tuple[Tensor, ...], running: Sequence[bool], progress: float) -> Captured:
        state = self._state()
        held = [t.detach().clone() for t in state]
        started = bool(self.optimizer.state)
        with side_stream(index.device):
            for _ in range(WARM_UP):
                self._whole_step(index, drawn, running, progress)
        self._restore(state, held, started)
        replay, losses = record(lambda: self._whole_step(index, drawn, running, progress))
        return Captured(replay, index, drawn, losses)

    def _state(self) -> list[Tensor]:
        """Return all tensors that a step changes: weights, statistics and optimizer states."""
        kept = [value for moments in self.optimizer.state.values() for value in moments.values()]
        return [*(p.detach() for p in self._stacked), *self.cascade.buffers(), *kept]

    def _restore(self, state: list[Tensor], held: list[Tensor], started: bool) -> None:
        with torch.no_grad():
            for tensor, value in zip(state, held, strict=True):
                tensor.copy_(value)
            if not started:  # the moments were created by the warm-up; Adam starts with zeros
                for moments in self.optimizer.state.values():
                    for value in moments.values():
                        value.zero_()
