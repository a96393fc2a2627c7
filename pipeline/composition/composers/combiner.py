"""CLIP4CIR's Combiner (Baldrati et al., CVPRW 2022), re-implemented; loads the published weights.

Projections of image and text, a head on both, and a learned scalar that weights the embeddings themselves. Sizes and
parameter names match the public checkpoints {"Combiner": weights}, which ``weights = "combiner.pt"`` loads. Inputs are
the towers' unnormalized embeddings (``extractor.normalise = false``).
"""

from __future__ import annotations

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn
from torch.nn.functional import normalize

from manifests.schema import Frozen
from pipeline.composition.composers.base import SharedSpace


class CombinerOptions(Frozen):
    projection: int | None = Field(None, ge=1)  # None: 4 times the embedding size, as published
    hidden: int | None = Field(None, ge=1)  # None: 8 times the embedding size, as published
    dropout: float = Field(0.5, ge=0, lt=1)


class Combiner(SharedSpace):
    """q = normalize(head(x) + s * text + (1 - s) * image), x = [text; image], s = sigmoid(mlp(x)); target = image."""

    title = "CLIP4CIR's combiner, trained on the train triplets or from its published weights"
    trainable = True
    Options = CombinerOptions
    other = 'composer "gated"'

    def __init__(self, options: BaseModel, image_dim: int, text_dim: int):
        super().__init__(options, image_dim, text_dim)
        o = self.options
        projection, hidden = o.projection or 4 * image_dim, o.hidden or 8 * image_dim
        self.text_projection_layer = nn.Linear(text_dim, projection)
        self.image_projection_layer = nn.Linear(image_dim, projection)
        self.combiner_layer = nn.Linear(2 * projection, hidden)
        self.output_layer = nn.Linear(hidden, image_dim)
        self.dynamic_scalar = nn.Sequential(
            nn.Linear(2 * projection, hidden), nn.ReLU(), nn.Dropout(o.dropout), nn.Linear(hidden, 1), nn.Sigmoid()
        )
        self.dropout = nn.Dropout(o.dropout)

    def query(self, image: Tensor, text: Tensor) -> Tensor:
        words = self.dropout(self.text_projection_layer(text).relu())
        pixels = self.dropout(self.image_projection_layer(image).relu())
        both = torch.cat([words, pixels], dim=-1)
        share = self.dynamic_scalar(both)
        made = self.output_layer(self.dropout(self.combiner_layer(both).relu()))
        return normalize(made + share * text + (1 - share) * image, dim=-1)

    @classmethod
    def published(cls, weights: dict[str, Tensor]) -> Combiner:
        """Return a combiner with a checkpoint's published weights. Raises KeyError or RuntimeError for others."""
        projection, dim = weights["image_projection_layer.weight"].shape
        hidden = weights["combiner_layer.weight"].shape[0]
        made = cls(CombinerOptions(projection=projection, hidden=hidden), dim, dim)
        made.load_state_dict(weights)
        return made
