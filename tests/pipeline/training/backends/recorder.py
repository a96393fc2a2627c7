"""A CUDA graph without CUDA: the operators of one step are recorded, and done again on the tensors where they lie."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pipeline.training.cascade import graph


class Recorder(TorchDispatchMode):
    """Record every operator; ``replay`` does them again, in order, and writes what they return to the first results."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        assert func is not torch.ops.aten._local_scalar_dense.default, "the host reads a value of the device"
        result = func(*args, **(kwargs or {}))
        aliases = [value.alias_info for value in func._schema.returns]
        if not aliases or not all(a is not None and not a.is_write for a in aliases):  # a view needs no replay
            self.calls.append((func, args, kwargs or {}, result))
        return result

    @torch.no_grad()
    def replay(self) -> None:
        for func, args, kwargs, first in self.calls:
            again = func(*args, **kwargs)
            for old, new in zip(tree_leaves(first), tree_leaves(again), strict=True):
                if isinstance(old, Tensor) and new is not old:
                    old.copy_(new)


def record(step: Callable[[], Tensor]) -> tuple[Callable[[], object], Tensor]:
    """As ``graph.record``; unlike a capture, it has done the step."""
    recorder = Recorder()
    with recorder:
        result = step()
    return recorder.replay, result


def replayed(kind: type[graph.GraphTrainer], monkeypatch: pytest.MonkeyPatch) -> type[graph.GraphTrainer]:
    """The graph's trainer ``kind`` on a CPU: all of it but CUDA."""

    class Recorded(kind):  # type: ignore[misc, valid-type]
        capturable = False

        def _captured(self, *arguments: Any) -> graph.Captured:
            before = [t.clone() for t in self._state()]
            captured = super()._captured(*arguments)
            self._restore(self._state()[: len(before)], before, len(before) == len(self._state()))
            return captured

    monkeypatch.setattr(graph, "why_not", lambda *_: "")
    monkeypatch.setattr(graph, "side_stream", lambda device: nullcontext())
    monkeypatch.setattr(graph, "record", record)
    monkeypatch.setattr(graph, "WARM_UP", 1)
    return Recorded
