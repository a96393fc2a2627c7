"""Weighted fusion: a training-free query for dual encoders with a shared embedding space (WeiMoCIR, Wu et al. 2024).

WeiMoCIR defines q = (1 - alpha) v + alpha t. Its public code uses unnormalized embeddings, with alpha 0.8 for CLIP and
0.95 for BLIP on FashionIQ; ``raw = true`` with ``extractor.normalise = false`` and ``alpha = 0.8`` reproduces this
query. By default both embeddings are normalized first, so that alpha is comparable between towers.

WeiMoCIR also adds, with weight beta, the similarity of q to generated captions of each candidate. This is left out: the
text rows of a store are feedback texts, so those captions have no rows, and with captions instead of images (the
``caption`` extractor) they already are the image rows.
"""

from __future__ import annotations

from pydantic import BaseModel, Field
from torch import Tensor
from torch.nn.functional import normalize

from manifests.errors import IncompleteError
from manifests.schema import Frozen
from pipeline.composition.composers.base import Composer


class FusionOptions(Frozen):
    alpha: float = Field(0.6, ge=0, le=1)  # weight of the text; 0 uses the image only. See BENCHMARKS.md
    raw: bool = False  # do not normalize the embeddings first


class Fusion(Composer):
    """q = normalize((1 - alpha) * image + alpha * text), target = normalize(image). ``raw``: inputs as they are."""

    title = "weighted fusion of image and text embeddings, nothing trained"
    trainable = False
    Options = FusionOptions

    def __init__(self, options: BaseModel, image_dim: int, text_dim: int):
        super().__init__(options, image_dim, text_dim)
        if image_dim != text_dim:
            raise IncompleteError(
                f"composer 'fusion' adds embeddings of one space, but image rows have {image_dim} values and text rows "
                f'{text_dim}: use a trained composer (name = "gated")'
            )
        self.dim = image_dim
        self.alpha = float(options.alpha)  # type: ignore[attr-defined]
        self.raw = bool(options.raw)  # type: ignore[attr-defined]

    def query(self, image: Tensor, text: Tensor) -> Tensor:
        """[B, D], [B, D] -> [B, D]."""
        if not self.raw:
            image, text = normalize(image, dim=-1), normalize(text, dim=-1)
        return normalize((1 - self.alpha) * image + self.alpha * text, dim=-1)

    def words(self, text: Tensor) -> Tensor:
        """[B, D] -> [B, D]."""
        return normalize(text, dim=-1)

    def target(self, image: Tensor) -> Tensor:
        """[B, D] -> [B, D]."""
        return normalize(image, dim=-1)
