"""FashionVLP (Goenka et al., CVPR 2022), the paper's single-turn model, re-implemented from its description.

As in the original: the reference image is encoded at several levels (whole image, cropped garment, landmarks); its
tokens and the words go through one transformer of BERT-base size, and f_qry is the [CLS] output. A target image is
encoded by the CNN only; each level is pooled by learned attention, and attention over the levels gives f_tar.

Different, because neither weights nor detectors are public: ``landmarks`` learned attention maps over the image replace
the points of a landmark detector; the crop is the bounding box of the pixels that differ from the border's color;
region features of an object detector are left out; both sides share the CNN.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image as Pillow
from pydantic import Field
from torch import Tensor, nn

from pipeline.extraction.extractors import _cards
from pipeline.extraction.extractors._joint import JointExtractor, JointNetwork, JointOptions, square
from pipeline.extraction.extractors.base import Card

BORDER_DIFFERENCE = 24  # of 255, in any channel: pixels that differ more from the border's median color are garment
LEAST_CROP = 0.05  # of the image's area; for a smaller box the whole image is used


class FashionVlpOptions(JointOptions):
    image_size: int = Field(224, ge=32)
    landmarks: int = Field(14, ge=1)


class FashionVlpNetwork(JointNetwork):
    def __init__(self, settings: dict[str, Any]):
        self.landmarks = int(settings["landmarks"])
        cells = (-(-int(settings["image_size"]) // _stride(settings))) ** 2
        super().__init__(settings, 2 * cells + self.landmarks)
        self.spots = nn.Conv2d(self.channels, self.landmarks, 1)
        self.level = nn.Parameter(torch.zeros(3, self.width))
        nn.init.normal_(self.level, std=0.02)
        self.pool = nn.ModuleList(nn.Linear(self.width, 1) for _ in range(3))  # whole, crop, landmarks
        self.context = nn.Sequential(nn.Linear(self.width, self.width), nn.Tanh(), nn.Linear(self.width, 1))
        self.answer = nn.Linear(self.width, self.width)

    def levels(self, images: Tensor) -> list[Tensor]:
        """Return tokens of whole image, crop and landmarks, each [n, count, width], for uint8 [n, 2, 3, s, s]."""
        n = len(images)
        maps = self.feature_map(images.flatten(0, 1)).unflatten(0, (n, 2))  # [n, 2, C, h, w]
        whole = maps[:, 0]
        where = self.spots(whole).flatten(2).softmax(-1)  # [n, landmarks, cells]
        spots = where @ whole.flatten(2).transpose(1, 2)  # [n, landmarks, C]
        cells = maps.flatten(3).transpose(2, 3)  # [n, 2, cells, C]
        return [self.project(part) + self.level[i] for i, part in enumerate((cells[:, 0], cells[:, 1], spots))]

    def query(self, images: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        return self.read(ids, mask, torch.cat(self.levels(images), 1))

    def target(self, images: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        parts = zip(self.levels(images), self.pool, strict=True)
        by_level = [(score(tokens).softmax(1) * tokens).sum(1) for tokens, score in parts]
        pooled = torch.stack(by_level, 1)  # [n, 3, width]
        return self.answer((self.context(pooled).softmax(1) * pooled).sum(1))


class FashionVlpExtractor(JointExtractor):
    """One transformer over multi-level image tokens and words; contextual attention over a target's levels."""

    title: ClassVar[str] = "FashionVLP (the paper's), re-implemented; landmarks by learned attention"
    Options = FashionVlpOptions
    Network = FashionVlpNetwork
    built_with: ClassVar[tuple[str, ...]] = ("image_size", "landmarks")
    execution_only: ClassVar[tuple[str, ...]] = (*JointExtractor.execution_only, *built_with)
    cards: ClassVar[tuple[Card, ...]] = _cards.FASHIONVLP

    def prepare(self, image: Pillow.Image) -> np.ndarray:
        """Return the whole image and the garment crop, uint8 [2, 3, size, size]."""
        size = self.settings["image_size"]
        return np.stack([square(image, size), square(image.crop(garment_box(image)), size)])


def garment_box(image: Pillow.Image) -> tuple[int, int, int, int]:
    """Return (left, top, right, bottom) of what differs from the border's color; the whole image if that is small."""
    pixels = np.asarray(image)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    differs = np.zeros(pixels.shape[:2], dtype=bool)
    for n, color in enumerate(np.median(border, axis=0).astype(np.float32)):  # by channel: a third of the memory
        differs |= np.abs(pixels[..., n] - color) > BORDER_DIFFERENCE
    rows, columns = np.flatnonzero(differs.any(1)), np.flatnonzero(differs.any(0))
    if len(rows):
        box = int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
        if (box[2] - box[0]) * (box[3] - box[1]) >= LEAST_CROP * image.width * image.height:
            return box
    return 0, 0, image.width, image.height


def _stride(settings: dict[str, Any]) -> int:
    """Return pixels per cell of the CNN's last feature map: stride 4 in the stem, 2 in each stage after the first."""
    image = settings["image"]
    first = 2 if image.get("downsample_in_first_stage") else 1
    return 4 * first * 2 ** (len(image["hidden_sizes"]) - 1)
