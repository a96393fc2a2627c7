"""What may be done in several ways: a turn of all stages, its reading stage by stage and its writing at once."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor

from pipeline.training.cascade.cell import HeadGradients
from pipeline.training.cascade.saved_activations import SavedActivations, Weights


class GradIn(NamedTuple):
    """Gradients that reach a turn from all but its own chain: of its state [K, C, B, M + H], of which read and hidden are
    views, of the cells [K, C, B, H], and of where the read heads stand [K, C, B, N]. The chain may add its own to them; to
    that of what was read it must.
    """

    state: Tensor
    read: Tensor
    hidden: Tensor
    cell: Tensor
    read_at: Tensor


class GradOut(NamedTuple):
    """What a chain's backward hands on, the gradients of: where the read heads stood before [K, C, B, N], the cells
    before the turn [K, C, B, H], and r^0(n) [K, B, M]."""

    previous: Tensor
    cell: Tensor
    first: Tensor


class TurnOps(Protocol):
    """One turn of all stages. ``forward`` and ``backward`` are the part that goes stage by stage, r^{c-1}(n) -> gates ->
    read head -> r^c(n); they are not called for a turn whose stages run side by side, the other two are."""

    def forward(self, trace: SavedActivations, weights: Weights, n: int, previous: Tensor) -> None:
        """Completes gates, squashed, read_raw, and at place n + 1 cells and states; the turn's memory and the gates' parts
        that do not depend on the chain are there. ``previous`` [K, C, B, N]: where the read heads stood after turn n - 1.
        """

    def write(self, trace: SavedActivations, n: int, raw: Tensor, previous: Tensor) -> None:
        """Erase and add: the memories that turn n leaves, as the turn that follows in ``trace.turns``.

        ``raw`` [K, C, B, 3 M + 6]: the write head's scalars, erase, add and, but for stages side by side, its key; it may be
        overwritten. ``previous``: as above, of the write heads.
        """

    def write_backward(self, trace: SavedActivations, n: int, at: Tensor, d_raws: Tensor) -> HeadGradients:
        """From ``trace.d_memory``, the gradient of the memories that turn n left, and ``at`` [K, C, B, N], that of where the
        write heads stand, which may be overwritten: completes turn n of ``d_raws`` [K, C, T - 1, B, 3 M + 6]."""

    def backward(
        self,
        weights: Weights,
        trace: SavedActivations,
        n: int,
        reaching: GradIn,
        writing: HeadGradients | None,
        d_gates: Tensor,
        d_raws: Tensor,
    ) -> GradOut:
        """Completes ``d_gates`` [K, C, B, 4 H] and turn n of ``d_raws`` [K, C, T, B, M + 6], of the read heads' raw outputs.

        Turns ``trace.d_memory`` into the gradient of the memories that turn n read. ``writing``: of turn n's write, if it
        wrote.
        """
