"""Weighted fusion: a training-free query for dual encoders with a shared embedding space (WeiMoCIR, Wu et al. 2024).

WeiMoCIR defines q = (1 - alpha) v + alpha t. Its public code uses unnormalized embeddings, with alpha 0.8 for CLIP and
0.95 for BLIP on FashionIQ; ``raw = true`` with ``extractor.normalise = false`` and ``alpha = 0.8`` reproduces this
query. By default both embeddings are normalized first, so that alpha is comparable between towers.

WeiMoCIR also adds, with weight beta, the similarity of q to generated captions of each candidate. This is left out: the
text rows of a store are feedback texts, so those captions have no rows, and with captions instead of images (the
``caption`` extractor) they already are the image rows.
"""

from __future__ import annotations

from pydantic import Field
from torch import Tensor
from torch.nn.functional import normalize

from manifests.schema import Frozen
from pipeline.composition.composers.base import SharedSpace


class FusionOptions(Frozen):
    alpha: float = Field(0.6, ge=0, le=1)  # weight of the text; 0 uses the image only. See BENCHMARKS.md
    raw: bool = False  # do not normalize the embeddings first


class Fusion(SharedSpace):
    """q = normalize((1 - alpha) * image + alpha * text), target = normalize(image). ``raw``: inputs as they are."""

    title = "weighted fusion of image and text embeddings, nothing trained"
    trainable = False
    Options = FusionOptions
    other = 'a trained composer (name = "gated")'

    def query(self, image: Tensor, text: Tensor) -> Tensor:
        alpha = self.options.alpha
        if not self.options.raw:
            image, text = normalize(image, dim=-1), normalize(text, dim=-1)
        return normalize((1 - alpha) * image + alpha * text, dim=-1)
