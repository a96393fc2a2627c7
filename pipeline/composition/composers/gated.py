"""A gate and a residual on frozen embeddings, in the manner of TIRG (Vo et al., CVPR 2019), trained on triplets."""

from __future__ import annotations

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn
from torch.nn.functional import normalize

from manifests.schema import Frozen
from pipeline.composition.composers.base import Composer


class GatedOptions(Frozen):
    dim: int = Field(256, ge=1)
    hidden: int = Field(512, ge=1)
    dropout: float = Field(0.3, ge=0, lt=1)


class Gated(Composer):
    """q = normalise(gate * target(image) + residual), both from [image; text; image * text] after projection."""

    title = "gate and residual over frozen embeddings, trained on the train triplets"
    trainable = True
    Options = GatedOptions

    def __init__(self, options: BaseModel, image_dim: int, text_dim: int):
        super().__init__(options, image_dim, text_dim)
        o: GatedOptions = options  # type: ignore[assignment]
        self.dim = o.dim
        self.project_image = nn.Linear(image_dim, o.dim)
        self.project_text = nn.Linear(text_dim, o.dim)
        self.dropout = nn.Dropout(o.dropout)
        self.gate = self._head(o)
        self.residual = self._head(o)

    @staticmethod
    def _head(o: GatedOptions) -> nn.Sequential:
        return nn.Sequential(nn.Linear(3 * o.dim, o.hidden), nn.ReLU(), nn.Dropout(o.dropout), nn.Linear(o.hidden, o.dim))

    def query(self, image: Tensor, text: Tensor) -> Tensor:
        """[B, image_dim], [B, text_dim] -> [B, dim]."""
        reference = normalize(self.project_image(self.dropout(image)), dim=-1)
        words = normalize(self.project_text(self.dropout(text)), dim=-1)
        # Unit-norm inputs have entries near 1/sqrt(D): bring them and their product to unit scale for the heads.
        size = self.dim**0.5
        joint = torch.cat([reference * size, words * size, reference * words * size**2], dim=-1)
        return normalize(torch.sigmoid(self.gate(joint)) * reference + self.residual(joint), dim=-1)

    def target(self, image: Tensor) -> Tensor:
        """[B, image_dim] -> [B, dim]."""
        return normalize(self.project_image(image), dim=-1)
