"""The number of operations that a call dispatches (of a replayed graph, those of the host)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode


class _Counted(TorchDispatchMode):
    """Count torch's operators except views, which compute nothing."""

    operations = 0

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operations += not operator.is_view
        return operator(*args, **(kwargs or {}))


def operations(call: Callable[[], object]) -> int:
    """Return the number of operators dispatched by ``call``, with its backward; kernels outside torch do not count."""
    with _Counted() as counted:
        call()
    return counted.operations
