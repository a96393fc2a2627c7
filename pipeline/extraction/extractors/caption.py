"""Sentence encoder over image captions instead of pixels: real dialogs without image files."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field

from manifests.identity import file_digest
from manifests.schema import Dataset, Image
from pipeline.extraction import hub
from pipeline.extraction.extractors import _cards
from pipeline.extraction.extractors._sentence import dense_layers, sentence_config
from pipeline.extraction.extractors.base import Card, Extractor, ExtractorOptions
from pipeline.extraction.tokens import Tokens


class CaptionOptions(ExtractorOptions):
    """``model``: hub id or local folder of a sentence encoder. ``attributes``: append the dataset's attribute words."""

    model: str = Field("sentence-transformers/all-MiniLM-L6-v2", min_length=1)
    revision: str | None = None
    trust_remote_code: bool = False
    attributes: bool = False


class CaptionExtractor(Extractor):
    """One encoder for both tables: image rows embed the images' captions, text rows the feedback.

    A sentence-transformers folder sets pooling, dense layers, normalization, prompt and maximum length.
    """

    title: ClassVar[str] = "sentence encoder over captions that stand in for images"
    Options = CaptionOptions
    reads: ClassVar[Literal["pixels", "caption"]] = "caption"
    stated: ClassVar[tuple[str, ...]] = ("model", "revision", "trust_remote_code", "attributes")
    cards: ClassVar[tuple[Card, ...]] = _cards.CAPTION
    options: CaptionOptions
    tokens: Tokens

    def __init__(self, options: CaptionOptions, device: torch.device):
        super().__init__(options, device)
        known, checkpoint = _cards.located(_cards.CAPTION, options)
        self.checkpoint, self.sentence = checkpoint, sentence_config(checkpoint)
        self.pooling = self.sentence.pooling
        self.model = hub.load_model(checkpoint, self.compute, device, unused=("pooler.",))
        self.dense = dense_layers(checkpoint, self.sentence.dense, self.model.config.hidden_size).to(device)
        tokenizer = hub.load_tokenizer(checkpoint)
        positions = getattr(self.model.config, "max_position_embeddings", 512)
        length = int(self.sentence.max_length or min(tokenizer.model_max_length, positions))
        lower, prompt = self.sentence.lower, self.sentence.prompt
        self.tokens = Tokens(tokenizer, length, lower=lower, name=options.model, prompt=prompt)
        self.tokens.require_place(self.model)
        self.card = _cards.card_of(known, options.model, options.contaminated_on)

    def dim(self, table: str) -> int:
        last = self.dense[-2] if len(self.dense) else None
        return last.out_features if isinstance(last, torch.nn.Linear) else int(self.model.config.hidden_size)

    def semantic(self) -> dict[str, Any]:
        own: dict[str, Any] = {"pooling": self.pooling, "attributes": self.options.attributes}
        if self._normalizes:  # unit-norm rows do not depend on the model's normalization
            own["model_normalizes"] = True
        if layers := [self.checkpoint.path / folder for folder in self.sentence.dense]:
            own["dense"] = [{f.name: file_digest(f) for f in sorted(p.iterdir()) if f.is_file()} for p in layers]
        return super().semantic() | self._of_checkpoint() | own

    def standin(self, image: Image, dataset: Dataset) -> str | None:
        caption = " ".join((image.caption or "").split())
        if not caption or not self.options.attributes:
            return caption or None
        words = (w for field in dataset.attributes.get(image.id, {}).values() for w in field)
        return ", ".join([caption, *dict.fromkeys(words)])

    @property
    def _normalizes(self) -> bool:
        return self.sentence.normalize and not self.options.normalise

    def _text_features(self, texts: list[np.ndarray]) -> torch.Tensor:
        rows = self.dense(self._pooled(texts))
        return torch.nn.functional.normalize(rows, dim=-1) if self._normalizes else rows

    _image_features = _text_features  # type: ignore[assignment]

    def _pooled(self, texts: list[np.ndarray]) -> torch.Tensor:
        """Return pooled token states [n, hidden size], float32; padding is excluded."""
        inputs = self.tokens.pad(texts, self.device)
        states = self.model(**inputs).last_hidden_state.float()  # [n, tokens, D]
        width, left = states.shape[1], self.tokens.tokenizer.padding_side == "left"
        lengths = torch.tensor([len(ids) for ids in texts], device=states.device)
        if self.pooling in ("cls", "last"):
            first = width - lengths if left else torch.zeros_like(lengths)
            place = first if self.pooling == "cls" else first + lengths - 1
            return states[torch.arange(len(states), device=states.device), place]
        position = torch.arange(width, device=states.device)
        kept = ((position.flip(0) if left else position) < lengths[:, None]).unsqueeze(-1)  # [n, tokens, 1]
        if self.pooling == "max":
            return states.masked_fill(~kept, -torch.inf).amax(1)
        return (states * kept).sum(1) / lengths.clamp(min=1)[:, None]
