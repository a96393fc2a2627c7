"""FashionBERT (Gao et al., SIGIR 2020), re-implemented from its description: a BERT over words and image patches.

As in the original: the image is split into 8 x 8 patches, a CNN encodes each as one token, and a BERT-base encodes
words and patches together. Different from the original: the model is fitted for retrieval by in-batch cross-entropy
(original: pair matching with masked-word and masked-patch tasks), f_qry is the [CLS] output, f_tar is the output of the
same network for the image without words, and the CNN is any ResNet of transformers (original: ResNeXt-101).
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from PIL import Image as Pillow
from pydantic import Field
from torch import Tensor

from pipeline.extraction.extractors import _cards
from pipeline.extraction.extractors._joint import JointExtractor, JointNetwork, JointOptions, square
from pipeline.extraction.extractors.base import Card


class FashionBertOptions(JointOptions):
    """``grid`` x ``grid`` patches of ``patch`` x ``patch`` pixels."""

    grid: int = Field(8, ge=1)
    patch: int = Field(32, ge=8)


class FashionBertNetwork(JointNetwork):
    def __init__(self, settings: dict[str, Any]):
        super().__init__(settings, settings["grid"] ** 2)

    def tokens(self, images: Tensor) -> Tensor:
        """Return tokens [n, grid^2, width] of patches uint8 [n, grid^2, 3, patch, patch]."""
        n, count = images.shape[:2]
        return self.project(self.feature_map(images.flatten(0, 1)).mean((2, 3))).view(n, count, self.width)

    def query(self, images: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        return self.read(ids, mask, self.tokens(images))

    def target(self, images: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        return self.query(images, ids.expand(len(images), -1), mask.expand(len(images), -1))


class FashionBertExtractor(JointExtractor):
    """One BERT over words and image patches; fitted by ``fit-extractor``."""

    title: ClassVar[str] = "FashionBERT, re-implemented: a BERT over words and image patches"
    Options = FashionBertOptions
    Network = FashionBertNetwork
    built_with: ClassVar[tuple[str, ...]] = ("grid", "patch")
    execution_only: ClassVar[tuple[str, ...]] = (*JointExtractor.execution_only, *built_with)
    cards: ClassVar[tuple[Card, ...]] = _cards.FASHIONBERT

    def prepare(self, image: Pillow.Image) -> np.ndarray:
        """Return the patches in row-major order, uint8 [grid^2, 3, patch, patch]."""
        grid, side = self.settings["grid"], self.settings["patch"]
        whole = square(image, grid * side).reshape(3, grid, side, grid, side)
        return np.ascontiguousarray(whole.transpose(1, 3, 0, 2, 4).reshape(grid * grid, 3, side, side))
