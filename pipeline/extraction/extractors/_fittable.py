"""What an extractor adds when ``fit-extractor`` can train it on the single-turn triplets of a dataset."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn

from manifests.schema import Frozen
from pipeline.extraction.extractors.base import Extractor, ExtractorOptions, Prepared


class FitOptions(Frozen):
    """How an extractor is fitted (``[extractor.fit]`` of a run spec): AdamW, one learning-rate cycle, in-batch negatives."""

    epochs: int = Field(20, ge=1)
    batch_size: int = Field(64, ge=2)
    learning_rate: float = Field(1e-4, gt=0)  # at the top of the cycle
    warmup: float = Field(0.1, ge=0, lt=1)  # share of the steps before the top
    weight_decay: float = Field(0.01, ge=0)
    temperature: float = Field(0.07, gt=0)
    clip_norm: float = Field(1.0, gt=0)
    seed: int = 0
    autocast: bool = False  # bfloat16 where torch deems it safe; for CUDA
    alpha: float | None = Field(None, ge=0, le=1)  # dual encoders: the text's weight; None: that of composer "fusion"
    towers: Literal["both", "image", "text"] = "both"  # dual encoders: which are trained


STARTS = ("model", "revision", "text_model", "image_model")  # options that name what a fit starts from


class Fittable(Extractor):
    """An extractor with weights that can be trained. ``network`` holds exactly what is trained and saved."""

    fittable: ClassVar[bool] = True
    network: nn.Module
    starts: Mapping[str, Any] = {}  # ``origin`` of the weights that ``fresh`` loaded

    @classmethod
    @abstractmethod
    def fresh(cls, options: ExtractorOptions, device: torch.device, texts: Sequence[str]) -> Self:
        """One to be trained, in float32: weights drawn from ``fit.seed``, or those it is told to start from.

        ``texts``: the train feedback, of which a vocabulary is made where no tokenizer is given.
        """

    @classmethod
    def starts_from(cls, options: ExtractorOptions) -> bool:
        """Whether ``options`` ask for a model that has to be fitted first."""
        raise NotImplementedError

    @classmethod
    @abstractmethod
    def origin(cls, options: ExtractorOptions) -> dict[str, Any]:
        """Content digests of what ``fresh`` starts from, by part (``hub.origin``); {} where all weights are drawn.

        Part of a fit's key in place of ``STARTS``. Raises ModelError when a model is not found.
        """

    @abstractmethod
    def queries(self, images: list[Prepared], texts: list[Prepared], alpha: float) -> Tensor:
        """f_qry of prepared (reference image, feedback), unit norm, float32 [n, D], with gradients where enabled."""

    @abstractmethod
    def targets(self, images: list[Prepared]) -> Tensor:
        """f_tar of prepared images, unit norm, float32 [n, D], with gradients where enabled."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write what ``model = folder`` loads again: configuration, tokenizer and safetensors weights."""
