"""The contract of a memory model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from manifests.schema import Frozen
from pipeline.training.errors import TrainingError

if TYPE_CHECKING:
    from pipeline.training.data import SessionFeatures
    from pipeline.training.objective import Step


class TurnsSoFar(NamedTuple):
    """The state of a model that has no shorter one. queries: [B, n, D], f_qry(1..n)."""

    queries: Tensor


class MemoryModel(nn.Module, ABC):
    """Maps the query features of a session's turns to features that retrieve each turn's target.

    A child sets the class variables, defines ``Options`` and writes ``_forward``; shapes are checked here, once for
    all. Output position n uses turns 1..n only, so padding after a session's end never changes f'_qry(N).
    """

    title: ClassVar[str]
    version: ClassVar[int] = 1  # raise it when the same weights or options would give other numbers
    Options: ClassVar[type[Frozen]] = Frozen
    trainable: ClassVar[bool] = True  # fitted by gradient; False: ``fit_parameters`` is all of its training
    scores: ClassVar[bool] = False  # True: candidates are ranked by ``score``, not by cosine with f'_qry(N)
    stacks: ClassVar[bool] = False  # True: vmap computes it for runs side by side (see backends/stacked.py)
    reads: ClassVar[Literal["turns", "concatenated"]] = "turns"  # "concatenated": T = 1, all captions as one query

    def __init__(self, options: Frozen, dim: int):
        super().__init__()
        self.options, self.dim = options, dim

    @property
    def name(self) -> str:
        """The name that the registry finds this model by."""
        return type(self).__module__.rsplit(".", 1)[-1]

    @property
    def texts(self) -> int:
        """E, the width of the text rows that the model reads beside f_qry: its option ``texts``; 0: it reads none."""
        return getattr(self.options, "texts", 0)

    def forward(self, queries: Tensor, lengths: Tensor) -> Tensor:
        """f'_qry(1..T).

        Args:
            queries: [B, T, D], f_qry(1..T), or [B, T, D + E] for a model that reads ``texts``; sessions shorter than T are padded at the end.
            lengths: int64 [B], turns before padding.

        Returns:
            [B, T, D].

        Raises:
            TrainingError: shapes that do not fit the model or each other.
        """
        if queries.dim() != 3 or queries.shape[-1] != self.dim + self.texts or queries.shape[1] < 1:
            raise TrainingError(
                f"{self.name}: queries have shape {list(queries.shape)}, expected "
                f"[batch, turns >= 1, {self.dim + self.texts}]; build the model for the width of the store's features"
                + (f" ({self.dim}, and the option texts = {self.texts} for the text rows)" if self.texts else "")
            )
        if lengths.shape != queries.shape[:1]:
            raise TrainingError(
                f"{self.name}: lengths have shape {list(lengths.shape)} for {queries.shape[0]} sessions; give one each"
            )
        if self.reads == "concatenated" and queries.shape[1] != 1:
            raise TrainingError(
                f"{self.name} reads one query of all captions, got {queries.shape[1]} turns; use the concatenated rows"
            )
        return self._forward(queries, lengths)

    @abstractmethod
    def _forward(self, queries: Tensor, lengths: Tensor) -> Tensor:
        """As ``forward``, shapes checked."""

    def score(self, queries: Tensor, lengths: Tensor, candidates: Tensor) -> Tensor:
        """How well each candidate answers each session after its last turn; higher is better.

        The cosine of f'_qry(N) and f_tar unless a model with ``scores`` says otherwise. A session's padding, the other
        sessions and the other candidates change nothing.

        Args:
            queries, lengths: as ``forward``. candidates: [G, D], f_tar.

        Returns:
            [B, G].
        """
        outputs = self(queries, lengths)
        last = outputs[torch.arange(len(lengths), device=lengths.device), lengths - 1]
        return F.normalize(last, dim=-1) @ F.normalize(candidates, dim=-1).T

    def objective(self, step: Step) -> Tensor | None:
        """A loss of the model's own (a scalar) in place of ``training.loss`` and its negatives; None: it has none."""
        return None

    def rate(self, progress: float) -> float:
        """What the learning rate is multiplied by in the epoch that ends at ``progress`` (see ``Step``): 1."""
        return 1.0

    def initial_state(self, batch: int) -> Any:
        """The state of ``batch`` dialogues before their first turn: a named tuple of tensors, ints and such tuples.

        Here the turns themselves; a child whose memory is shorter says so, together with ``step``.
        """
        like = next(iter(self.state_dict().values()), torch.empty(0))
        return TurnsSoFar(like.new_empty(batch, 0, self.dim + self.texts))

    def step(self, query: Tensor, state: Any) -> tuple[Tensor, Any]:
        """One turn of running dialogues, in eval mode: f_qry(n) [B, D] -> f'_qry(n) [B, D] and the next state.

        The outputs of successive steps are those of ``forward`` on the whole sessions.
        """
        if self.reads == "concatenated":  # f_qry(n) is already of all captions so far
            return self(query.unsqueeze(1), query.new_ones(len(query), dtype=torch.int64))[:, -1], state
        queries = torch.cat([state.queries.to(query), query.unsqueeze(1)], 1)
        lengths = queries.new_full((len(queries),), queries.shape[1], dtype=torch.int64)
        return self(queries, lengths)[:, -1], TurnsSoFar(queries)

    def fit_parameters(self, features: SessionFeatures) -> dict[str, Any]:
        """Choose what has a closed form on these sessions; what was chosen, for the record. Nothing by default.

        It is all of the training of a model that is not ``trainable``, and comes before the first epoch of one that is.
        """
        return {}
