"""Base class of the memory models, and dropout with a replaceable source of random numbers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from manifests.schema import Frozen
from pipeline.training.errors import TrainingError

if TYPE_CHECKING:
    from pipeline.training.data import SessionFeatures
    from pipeline.training.objective import Step


Source = Callable[[Tensor, float], Tensor]
_source: ContextVar[Source | None] = ContextVar("dropout", default=None)


def dropout(values: Tensor, rate: float, training: bool) -> Tensor:
    """Apply ``F.dropout``, or the source set by ``dropped_by``."""
    source = _source.get()
    if source is None or not training or not rate:
        return F.dropout(values, rate, training)
    return source(values, rate)


@contextmanager
def dropped_by(source: Source) -> Iterator[None]:
    """Compute every dropout inside the context with ``source(values, rate)``: each run side by side draws its own."""
    token = _source.set(source)
    try:
        yield
    finally:
        _source.reset(token)


class TurnsSoFar(NamedTuple):
    """Default state of a model: all turns so far. queries: [B, n, D], f_qry(1..n)."""

    queries: Tensor


def last_turn(values: Tensor, lengths: Tensor) -> Tensor:
    """Return the values of each session's last turn: [B, T, ...], int64 [B] -> [B, ...]."""
    return values[torch.arange(len(lengths), device=lengths.device), lengths - 1]


class MemoryModel(nn.Module, ABC):
    """Map the query features of a session's turns to features that retrieve each turn's target.

    A subclass sets the class variables, defines ``Options`` and implements ``_forward``; this class checks shapes.
    Output position n uses turns 1..n only, so padding after a session's end does not change f'_qry(N).
    """

    title: ClassVar[str]
    version: ClassVar[int] = 1  # increment it when the same weights or options give different outputs
    Options: ClassVar[type[Frozen]] = Frozen
    trainable: ClassVar[bool] = True  # trained by gradient; False: ``fit_parameters`` is the whole training
    scores: ClassVar[bool] = False  # True: candidates are ranked by ``score``, not by cosine with f'_qry(N)
    stacks: ClassVar[bool] = False  # True: vmap can train several runs of it at once (see backends/stacked.py)
    reads: ClassVar[Literal["turns", "concatenated"]] = "turns"  # "concatenated": T = 1, all captions as one query
    dialogs: ClassVar[bool] = False  # True: the one query is the chat of all images and texts (with "concatenated")

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...  # parameters, buffers and submodules, registered by name

    def __init__(self, options: Frozen, dim: int):
        super().__init__()
        self.options: Any = options  # of the subclass's ``Options``
        self.dim = dim

    @property
    def name(self) -> str:
        """Name of the model in the registry."""
        return type(self).__module__.rsplit(".", 1)[-1]

    @property
    def texts(self) -> int:
        """E, the width of the text features that the model reads in addition to f_qry (option ``texts``); 0: none."""
        return getattr(self.options, "texts", 0)

    def forward(self, queries: Tensor, lengths: Tensor) -> Tensor:
        """Compute f'_qry(1..T), [B, T, D]. Raises TrainingError for shapes that do not match the model or each other.

        queries: [B, T, D], f_qry(1..T), or [B, T, D + E] for a model that reads ``texts``; sessions shorter than T are
        padded at the end. lengths: int64 [B], turns before padding.
        """
        width = self.dim + self.texts
        if queries.dim() != 3 or queries.shape[-1] != width or queries.shape[1] < 1:
            what = f"{self.name}: queries have shape {list(queries.shape)}, expected [batch, turns >= 1, {width}]"
            parts = f" ({self.dim}, and the option texts = {self.texts} for the text rows)" if self.texts else ""
            raise TrainingError(f"{what}; build the model for the width of the store's features{parts}")
        if lengths.shape != queries.shape[:1]:
            what = f"{self.name}: lengths have shape {list(lengths.shape)} for {queries.shape[0]} sessions"
            raise TrainingError(f"{what}; give one each")
        if self.reads == "concatenated" and queries.shape[1] != 1:
            what = f"{self.name} reads one query of all captions, got {queries.shape[1]} turns"
            raise TrainingError(f"{what}; use the concatenated rows")
        return self._forward(queries, lengths)

    @abstractmethod
    def _forward(self, queries: Tensor, lengths: Tensor) -> Tensor:
        """Compute ``forward`` on inputs of checked shape."""

    def score(self, queries: Tensor, lengths: Tensor, candidates: Tensor) -> Tensor:
        """Score each candidate for each session after its last turn; higher is better.

        The default is the cosine of f'_qry(N) and f_tar; a model with ``scores`` overrides it. A score must not depend
        on padding, other sessions or candidates. queries, lengths: as ``forward``; candidates: [G, D], f_tar -> [B, G].
        """
        last = last_turn(self(queries, lengths), lengths)
        return F.normalize(last, dim=-1) @ F.normalize(candidates, dim=-1).T

    def objective(self, step: Step) -> Tensor | None:
        """Return the model's own loss (a scalar), which replaces ``training.loss`` and its negatives, or None.

        Random numbers of the loss are ``step.drawn``, or ``draws(step)`` after the forward pass where that is None.
        """
        return None

    def draws(self, step: Step) -> tuple[Tensor, ...]:
        """Draw the random numbers of ``objective``; their shapes depend only on those of the batch and on the phase."""
        return ()

    def phase(self, progress: float) -> int:
        """Return which of its losses the model trains with in the epoch that ends at ``progress``; default 0."""
        return 0

    def rate(self, progress: float) -> float:
        """Return the factor of the learning rate in the epoch that ends at ``progress`` (see ``Step``); default 1."""
        return 1.0

    def initial_state(self, batch: int) -> Any:
        """Return the state of ``batch`` dialogues before their first turn: a named tuple of tensors, ints and tuples.

        The default state is all turns so far; a subclass with a smaller state overrides this and ``step``.
        """
        like = next(iter(self.state_dict().values()), torch.empty(0))
        return TurnsSoFar(like.new_empty(batch, 0, self.dim + self.texts))

    def step(self, query: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Process one turn of B dialogues, in eval mode: f_qry(n) [B, D] -> f'_qry(n) [B, D] and the next state.

        Successive steps give the same outputs as ``forward`` on the whole sessions.
        """
        if self.reads == "concatenated":  # f_qry(n) already contains all captions so far
            return self(query.unsqueeze(1), query.new_ones(len(query), dtype=torch.int64))[:, -1], state
        queries = torch.cat([state.queries.to(query), query.unsqueeze(1)], 1)
        lengths = queries.new_full((len(queries),), queries.shape[1], dtype=torch.int64)
        return self(queries, lengths)[:, -1], TurnsSoFar(queries)

    def fit_parameters(self, features: SessionFeatures) -> dict[str, Any]:
        """Set the parameters that are not trained by gradient from these sessions; return the chosen values.

        The whole training of a model that is not ``trainable``, else before the first epoch. The default sets nothing.
        """
        return {}
