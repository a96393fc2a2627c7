"""CFIR (Yuan & Lam 2021) on cached features: a GRU over the turns, and mutual attention with each candidate."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from pydantic import Field
from torch import Tensor, nn

from manifests.schema import Frozen
from pipeline.training.models.base import MemoryModel, dropout, last_turn

if TYPE_CHECKING:
    from pipeline.training.objective import Step

ATTENTION_HELD = 1 << 18  # maximum number of attention weights in memory: 1 MiB of float32 stays in a CPU's cache
MORE_ON_GPU = 32  # times as many, in fewer launches


class CFIR(MemoryModel):
    """score(session, candidate) = -scale^2 |x - y|^2 of unit-norm x = h + attended turns, y = c + attended fields.

    With cached features, the fused text and image feature of a turn is f_qry(n); h is a linear map of the mean over
    turns of the GRU's outputs. A candidate has a projection c and ``fields`` vectors a_k, which are linear maps of its
    f_tar and replace the six attribute embeddings of the original. Turns and fields attend to each other through
    A[n, k] = q_n' M a_k: the weight of a turn is the softmax over n of max_k A, that of a field the softmax over k of
    max_n A.

    Trained on the last turn with a batch-hard triplet loss on the squared distances. Every candidate is scored with
    its own fields; the public code adds the true target's attributes to the query, also at test time.
    """

    title = "CFIR (cached features)"
    scores = True
    stacks = True

    class Options(Frozen):
        width: int = Field(256, ge=1)  # 1,024 in the original
        fields: int = Field(6, ge=1)
        dropout: float = Field(0.0, ge=0, lt=1)  # on the input
        margin: float = Field(1.0, gt=0)
        scale: float = Field(5.0, gt=0)  # initial value of the learned scale

    def __init__(self, options: Options, dim: int):
        super().__init__(options, dim)
        width = options.width
        self.turn = nn.Linear(dim, width)
        self.gru = nn.GRU(width, width, batch_first=True)
        self.session = nn.Linear(width, width)
        self.candidate = nn.Linear(dim, width, bias=False)
        self.fields = nn.Linear(dim, options.fields * width)
        self.attention = nn.Linear(width, width, bias=False)
        self.scale = nn.Parameter(torch.tensor(options.scale))

    def _forward(self, queries: Tensor, lengths: Tensor) -> Tensor:
        """Map h to the space of f_tar, [B, T, D]: its inner product with a candidate's f_tar is h' c."""
        return self._read(queries)[1] @ self.candidate.weight

    def _read(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        """Return the turns q [B, T, W] and the session h [B, T, W] after each turn, from queries [B, T, D]."""
        turns = self.turn(dropout(queries, self.options.dropout, self.training))
        outputs, _ = self.gru(turns)
        counts = torch.arange(1, queries.shape[1] + 1, device=queries.device, dtype=queries.dtype)
        return turns, self.session(outputs.cumsum(1) / counts[:, None])

    def score(self, queries: Tensor, lengths: Tensor, candidates: Tensor) -> Tensor:
        turns, sessions = self._read(queries)
        place = torch.arange(queries.shape[1], device=lengths.device)
        session = last_turn(sessions, lengths)
        absent = place >= lengths[:, None]
        held = ATTENTION_HELD * (MORE_ON_GPU if queries.is_cuda else 1)
        size = max(1, held // (turns.shape[0] * turns.shape[1] * self.options.fields))
        return torch.cat([self._scores(turns, session, absent, part) for part in candidates.split(size)], 1)

    def _scores(self, turns: Tensor, session: Tensor, absent: Tensor, candidates: Tensor) -> Tensor:
        """Score by inner products, without a vector per pair: [B, T, W], [B, W], bool [B, T], [G, D] -> [B, G]."""
        whole = self.candidate(candidates)  # [G, W]
        fields = self.fields(candidates).unflatten(-1, (self.options.fields, -1))  # [G, F, W]
        affinity = torch.einsum("btw,gkw->bgtk", self.attention(turns), fields) / math.sqrt(turns.shape[-1])
        affinity = affinity.masked_fill(absent[:, None, :, None], -torch.inf)
        of_turn = affinity.amax(3).softmax(-1)  # [B, G, T]
        of_field = affinity.amax(2).softmax(-1)  # [B, G, F]

        between = torch.einsum("btw,gkw->bgtk", turns, fields)
        inner = session @ whole.T
        inner = inner + (of_field * torch.einsum("bw,gkw->bgk", session, fields)).sum(-1)
        inner = inner + (of_turn * torch.einsum("btw,gw->bgt", turns, whole)).sum(-1)
        inner = inner + torch.einsum("bgt,bgk,bgtk->bg", of_turn, of_field, between)

        asked = (session * session).sum(-1)[:, None] + 2 * (of_turn * (turns @ session[..., None]).mT).sum(-1)
        asked = asked + torch.einsum("bgt,bgu,btu->bg", of_turn, of_turn, turns @ turns.mT)
        offered = (whole * whole).sum(-1) + 2 * (of_field * (fields @ whole[..., None]).squeeze(-1)).sum(-1)
        offered = offered + torch.einsum("bgk,bgl,gkl->bg", of_field, of_field, fields @ fields.mT)
        floor = torch.finfo(inner.dtype).tiny
        cosine = inner / (asked.clamp_min(floor).sqrt() * offered.clamp_min(floor).sqrt())
        return -self.scale.square() * (2 - 2 * cosine)

    def objective(self, step: Step) -> Tensor:
        """Return the mean of max(0, margin + d(own target) - d(nearest other target)) over the sessions' last turns."""
        queries, targets, lengths = step.batch
        final, image = last_turn(targets, lengths), last_turn(step.rows, lengths)
        distances = -self.score(queries, lengths, final)
        nearest = distances.masked_fill(image[:, None] == image, torch.inf).amin(1)
        losses = (self.options.margin + distances.diagonal() - nearest).clamp_min(0)
        return losses.mean()
