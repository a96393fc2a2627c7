"""The gated composer, cross-fitted: a train pair's f_qry comes from a head that has not seen it."""

from __future__ import annotations

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn
from torch.nn.functional import normalize

from pipeline.composition.composers.base import Composer
from pipeline.composition.composers.gated import Gated, GatedOptions

_PRIME = 65_521


class CrossFittedOptions(GatedOptions):
    folds: int = Field(5, ge=2)  # each head sees (folds - 1) / folds of the triplets, once in folds - 1 epochs


class CrossFitted(Composer):
    """``folds`` gated query heads over one projection of the images; a query is answered by the head of its own fold.

    A query's fold is read off its reference image's row, and head k is trained on the other folds' queries alone. Every
    query, of a train, validation or test session, is then answered by a head that has seen none of the feedback on that
    reference image. Features of train sessions are so no better than those of new ones, which a memory model trained
    on them would otherwise learn to rely on. The image projection that queries and targets share sees every triplet.
    """

    title = "gate and residual over frozen embeddings, cross-fitted over folds of the reference images"
    trainable = True
    Options = CrossFittedOptions

    def __init__(self, options: BaseModel, image_dim: int, text_dim: int):
        super().__init__(options, image_dim, text_dim)
        o: CrossFittedOptions = options  # type: ignore[assignment]
        self.heads = nn.ModuleList(
            Gated(GatedOptions(dim=o.dim, hidden=o.hidden, dropout=o.dropout), image_dim, text_dim)
            for _ in range(o.folds)
        )
        self.dim = self.heads[0].dim
        self.project_image = self.heads[0].project_image
        for head in self.heads:  # one projection for all of them: a plain attribute there, so that it is saved once
            del head.project_image
            head.__dict__["project_image"] = self.project_image

    def folds(self, image: Tensor) -> Tensor:
        """[B, image_dim] -> int64 [B], from the bits of the rows: the same in any batch, order and on any device."""
        bits = image.float().contiguous().view(torch.int32).to(torch.int64) & 0xFFFF_FFFF
        place = torch.arange(1, image.shape[1] + 1, device=image.device)
        return ((bits >> 13) % _PRIME * place).sum(1) % _PRIME % len(self.heads)

    def query(self, image: Tensor, text: Tensor) -> Tensor:
        """[B, image_dim], [B, text_dim] -> [B, dim]. In training each row goes to one of the other folds' heads."""
        head = self.folds(image)
        if self.training:
            step = torch.randint(1, len(self.heads), head.shape, device=head.device)
            head = (head + step) % len(self.heads)
        out = image.new_zeros(len(image), self.dim)
        for number, part in enumerate(self.heads):
            (rows,) = (head == number).nonzero(as_tuple=True)
            if len(rows):
                out = out.index_put((rows,), part.query(image[rows], text[rows]))
        return out

    def target(self, image: Tensor) -> Tensor:
        """[B, image_dim] -> [B, dim]."""
        return normalize(self.project_image(image), dim=-1)
