"""Dual encoders of transformers: CLIP, FashionCLIP, SigLIP, SigLIP 2, and other models with the same two methods."""

from __future__ import annotations

import copy
import shutil
import string
from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from PIL import Image as Pillow
from pydantic import Field
from torch.nn.functional import normalize

from manifests.identity import image_key
from pipeline.extraction import hub
from pipeline.extraction.extractors import _cards
from pipeline.extraction.extractors._fittable import FitOptions, Fittable
from pipeline.extraction.extractors.base import Card, ExtractorOptions
from pipeline.extraction.images import Pixels, decoder, normalized, resized_pixels
from pipeline.extraction.jpeg import REMARK, TorchvisionDecode
from pipeline.extraction.tokens import Tokens
from pipeline.extraction.transfer import to_device

_PUNCTUATION = str.maketrans("", "", string.punctuation)


class ClipOptions(ExtractorOptions):
    """``model``: hub id, local folder, or the short name of a published checkpoint (see ``ls extractors --long``).

    ``trust_remote_code``: run the Python code that comes with the model. ``clean``: text cleaning before tokenization;
    "auto" is the cleaning of the checkpoint's training: "lower" for SigLIP, "canonical" (also without punctuation) if
    its card says so, otherwise "none". ``fit``: fine-tune the towers (``fit-extractor``), starting from ``model``, and
    use the fitted towers. ``decode``: who decodes and resizes images, see ``extraction/jpeg.py``.
    """

    model: str = Field(min_length=1)
    revision: str | None = None
    trust_remote_code: bool = False
    clean: Literal["auto", "none", "lower", "canonical"] = "auto"
    decode: Literal["pillow", "torchvision"] = "pillow"
    fit: FitOptions | None = None


class ClipExtractor(Fittable):
    """Image and text towers, each with its feature space; a composer combines them into queries."""

    title: ClassVar[str] = "CLIP, SigLIP and other dual encoders (hub id or local folder)"
    Options = ClipOptions
    stacks: ClassVar[bool] = True
    stated: ClassVar[tuple[str, ...]] = ("model", "revision", "trust_remote_code", "clean", "decode")
    execution_only: ClassVar[tuple[str, ...]] = ("fit",)  # a fit gives another ``model``
    cards: ClassVar[tuple[Card, ...]] = _cards.CLIP
    options: ClipOptions
    tokens: Tokens

    def __init__(self, options: ClipOptions, device: torch.device):
        super().__init__(options, device)
        known, self.checkpoint = _cards.located(_cards.CLIP, options)
        self.model = hub.load_model(self.checkpoint, self.compute, device)
        for method in ("get_image_features", "get_text_features"):
            if not hasattr(self.model, method):
                fix = "a dual encoder such as CLIP or SigLIP (for a sentence encoder use the caption extractor)"
                what = f"is a {type(self.model).__name__} without {method}: the clip extractor needs {fix}"
                raise hub.ModelError(f"model {options.model!r} {what}")
        self.processor = hub.load_image_processor(self.checkpoint)
        self.pixels = Pixels.of(self.processor)
        self.jpegs: TorchvisionDecode | None = None
        if options.decode == "torchvision":
            self.jpegs = TorchvisionDecode(options.model, self.processor, self.pixels, device)
            self.jpeg_decoder = self.jpegs.decoder
            self.images_per_job = self.jpegs.images_per_job or self.images_per_job
        tokenizer = hub.load_tokenizer(self.checkpoint)
        full = str(getattr(self.model.config, "model_type", "")).startswith("siglip")
        trained = (known and known.clean) or ("lower" if full else "none")
        self.clean = trained if options.clean == "auto" else options.clean
        # SigLIP's text tower pools the last position and was trained on texts padded to the full length
        clean = None if self.clean == "none" else partial(clean_text, how=self.clean)
        self.tokens = Tokens(tokenizer, self._text_length(tokenizer), full, name=options.model, clean=clean)
        self.tokens.require_place(self.model)
        self.card = _cards.card_of(known, options.model, options.contaminated_on)
        self._dims: dict[str, int] = {}

    @classmethod
    def starts_from(cls, options: ExtractorOptions) -> bool:
        return options.fit is not None  # type: ignore[attr-defined]

    @classmethod
    def origin(cls, options: ExtractorOptions) -> dict[str, Any]:
        assert isinstance(options, ClipOptions)
        known, found = _cards.located(_cards.CLIP, options)
        return {"model": hub.origin(found)} | ({"clean": known.clean} if known and options.clean == "auto" else {})

    @classmethod
    def fresh(cls, options: ExtractorOptions, device: torch.device, texts: Sequence[str]) -> Self:
        """Return the towers of ``model``, with gradients for those in ``fit.towers``; ``texts`` are not used."""
        assert isinstance(options, ClipOptions)
        made = cls(options.model_copy(update={"dtype": "float32"}), device)
        made.network, made.starts = made.model, cls.origin(options)
        towers = options.fit.towers if options.fit else "both"
        for name, parameter in made.model.named_parameters():
            of_image, of_text = name.startswith(("vision_model.", "visual_")), name.startswith("text_")
            frozen = not (of_image or of_text) or (towers != "both" and of_image != (towers == "image"))
            parameter.requires_grad_(not frozen)
        return made

    def queries(self, images: list[Any], texts: list[Any], alpha: float) -> torch.Tensor:
        """Return weighted fusion, as composer "fusion" (CLIP4CIR's first stage, there with equal weights)."""
        image, text = self.targets(images), normalize(self._text_features(texts).float(), dim=-1)
        return normalize((1 - alpha) * image + alpha * text, dim=-1)

    def save(self, folder: Path) -> None:
        """Write a standard folder of the same model with the new weights."""
        with hub.quiet():
            self.model.save_pretrained(folder)
        for file in hub.side_files(self.checkpoint):
            shutil.copyfile(file, folder / file.name)

    def _text_length(self, tokenizer: Any) -> int:
        text = getattr(self.model.config, "text_config", self.model.config)
        limits = (getattr(text, "max_position_embeddings", None), getattr(tokenizer, "model_max_length", None))
        known = [n for n in limits if isinstance(n, int) and 0 < n < 1_000_000]
        if not known:
            fix = "set model_max_length in tokenizer_config.json"
            raise hub.ModelError(f"model {self.options.model!r} does not say how long its texts may be: {fix}")
        return min(known)

    def dim(self, table: str) -> int:
        if (declared := declared_dim(self.model, table)) is not None:
            return declared
        if table not in self._dims:  # a model with its own code: encode one item
            blank = Pillow.new("RGB", (32, 32))
            rows = self.encode_images([blank]) if table == "image" else self.encode_texts(["a"])
            self._dims[table] = rows.shape[1]
        return self._dims[table]

    def semantic(self) -> dict[str, Any]:
        own = {
            "preprocessing": hub.plain(self.processor.to_dict()) | {"class": type(self.processor).__name__},
            "pooling": "the model's own",
            "decode": decoder(),
        }
        own |= {} if self.clean == "none" else {"clean": self.clean}
        own |= self.jpegs.semantic() if self.jpegs is not None else {}
        return super().semantic() | self._of_checkpoint() | own

    @cached_property
    def _table(self) -> torch.Tensor | None:
        return self.pixels.table(self.device, self.compute) if self.pixels is not None else None

    def image_tower(self) -> torch.nn.Module | None:
        return getattr(self.model, "vision_model", None)

    def exact(self) -> ClipExtractor | None:
        if self.jpegs is None:
            return None
        same = copy.copy(self)
        same.options = self.options.model_copy(update={"decode": "pillow"})
        same.jpegs, same.jpeg_decoder, same.noted = None, "", {}
        same.images_per_job = type(self).images_per_job
        return same

    def require(self) -> None:
        if self.jpegs is not None:
            self.jpegs.require()

    def prepare_file(self, data: bytes) -> Any:
        if self.jpegs is None:
            return super().prepare_file(data)
        prepared, remark = self.jpegs.prepare(data, self.check_size)
        if remark:
            self.noted[image_key(data)] = REMARK + remark
        return prepared

    def decode_ahead(self, prepared: Sequence[Any]) -> list[Any]:
        if self.jpegs is None:
            return list(prepared)
        found = self.jpegs.decoded(prepared)
        for one, (_, remark) in zip(prepared, found, strict=True):
            if remark:
                self.noted[image_key(one.data)] = REMARK + remark
        return [one for one, _ in found]

    def prepare(self, image: Pillow.Image) -> dict[str, np.ndarray]:
        if self.jpegs is not None:
            return self.jpegs.resized(image)
        if self.pixels is not None and (pixels := self.pixels.eight_bit(image)) is not None:
            return {"pixel_values": pixels}
        arrays = self.processor(images=[image], return_tensors="np")
        return {name: np.asarray(value)[0] for name, value in arrays.items()}

    def prepared_pixels(self, width: int, height: int) -> int:
        return max(width * height, resized_pixels(self.processor, width, height))

    def _image_features(self, images: list[dict[str, np.ndarray]]) -> torch.Tensor:
        inputs = to_device(images, self.device, self.compute)
        if self._table is not None and inputs["pixel_values"].dtype == torch.uint8:
            inputs["pixel_values"] = normalized(inputs["pixel_values"], self._table)
        return _pooled(self.model.get_image_features(**inputs))

    def _text_features(self, texts: list[np.ndarray]) -> torch.Tensor:
        return _pooled(self.model.get_text_features(**self.tokens.pad(texts, self.device)))


def declared_dim(model: Any, table: str) -> int | None:
    """Return D of ``table`` from the model's configuration; None for a model with its own code."""
    config, side = model.config, "vision_config" if table == "image" else "text_config"
    tower: Any = getattr(config, side, None)
    projection = getattr(model, "visual_projection" if table == "image" else "text_projection", None)
    if isinstance(projection, torch.nn.Linear):
        return projection.out_features
    if str(getattr(config, "model_type", "")).startswith("siglip") and hasattr(tower, "hidden_size"):
        return (table == "text" and getattr(tower, "projection_size", None)) or tower.hidden_size
    return None


def clean_text(text: str, how: str) -> str:
    """Return ``text`` unchanged, lowercase, or canonical: lowercase, no punctuation, single spaces (big_vision)."""
    if how == "canonical":
        return " ".join(text.replace("_", " ").translate(_PUNCTUATION).lower().split())
    return text.lower() if how == "lower" else text


def _pooled(output: Any) -> torch.Tensor:
    """Return the features: transformers 4 returns them directly, transformers 5 in an output object."""
    return output if isinstance(output, torch.Tensor) else output.pooler_output
