"""How many operations a call hands to the device; a replayed graph counts as what the host still does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode


class _Counted(TorchDispatchMode):
    """Counts torch's operators but for views, which compute nothing."""

    operations = 0

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operations += not operator.is_view
        return operator(*args, **(kwargs or {}))


def operations(call: Callable[[], Any]) -> int:
    """Operators that ``call`` dispatches, its backward's among them; kernels launched past torch are not seen."""
    with _Counted() as counted:
        call()
    return counted.operations
