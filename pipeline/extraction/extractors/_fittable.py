"""Base class of extractors that ``fit-extractor`` can train on the single-turn triplets of a dataset."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import normalize

from manifests.schema import Frozen
from pipeline.extraction.extractors.base import Extractor, ExtractorOptions, Prepared


class FitOptions(Frozen):
    """Fit options (``[extractor.fit]`` of a run spec): AdamW, one learning-rate cycle, in-batch negatives."""

    epochs: int = Field(20, ge=1)
    batch_size: int = Field(64, ge=2)
    learning_rate: float = Field(1e-4, gt=0)  # maximum of the cycle
    warmup: float = Field(0.1, ge=0, lt=1)  # fraction of the steps before the maximum
    weight_decay: float = Field(0.01, ge=0)
    temperature: float = Field(0.07, gt=0)
    clip_norm: float = Field(1.0, gt=0)
    seed: int = 0
    autocast: bool = False  # bfloat16 autocast, for CUDA
    alpha: float | None = Field(None, ge=0, le=1)  # dual encoders: weight of the text; None: that of composer "fusion"
    towers: Literal["both", "image", "text"] = "both"  # dual encoders: trained towers


STARTS = ("model", "revision", "text_model", "image_model")  # options that name the initial weights of a fit


class Fittable(Extractor):
    """Extractor with trainable weights. ``network``: the module that is trained and saved."""

    fittable: ClassVar[bool] = True
    network: nn.Module
    starts: Mapping[str, Any] = {}  # ``origin`` of the weights loaded by ``fresh``

    @classmethod
    @abstractmethod
    def fresh(cls, options: ExtractorOptions, device: torch.device, texts: Sequence[str]) -> Self:
        """Return an extractor to train, in float32, initialized from ``fit.seed`` or from pretrained weights.

        ``texts``: the train feedback, used to build a vocabulary if no tokenizer is given.
        """

    @classmethod
    def starts_from(cls, options: ExtractorOptions) -> bool:
        """Return whether ``options`` require a fitted model."""
        raise NotImplementedError

    @classmethod
    @abstractmethod
    def origin(cls, options: ExtractorOptions) -> dict[str, Any]:
        """Return content digests of the initial weights, by part (``hub.origin``); {} if all weights are random.

        They replace ``STARTS`` in the key of a fit. Raises ModelError when a model is not found.
        """

    @abstractmethod
    def queries(self, images: list[Prepared], texts: list[Prepared], alpha: float) -> Tensor:
        """Return f_qry of prepared (image, feedback) pairs: float32 [n, D], unit norm, with gradients if enabled."""

    def targets(self, images: list[Prepared]) -> Tensor:
        """Return f_tar of prepared images: float32 [n, D], unit norm, with gradients if enabled."""
        return normalize(self._image_features(images).float(), dim=-1)

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write configuration, tokenizer and safetensors weights, to be loaded with ``model = folder``."""
