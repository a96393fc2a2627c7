"""Multimodal LLM embedding models: image and text as one chat, the query is a hidden state of its last position.

Qwen3-VL-Embedding, GME-Qwen2-VL and ProCIR, in transformers' own classes; ``_chat.py`` has their prompts. A target is
the image alone.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from PIL import Image as Pillow
from pydantic import Field
from torch import Tensor

from pipeline.extraction import hub
from pipeline.extraction.extractors import _cards
from pipeline.extraction.extractors._chat import FORMATS, IMAGE_TOKEN, Chat, chat_template, format_of
from pipeline.extraction.extractors.base import Card, Extractor, ExtractorError, ExtractorOptions
from pipeline.extraction.images import decoder
from pipeline.extraction.tokens import pad_ids


class MllmOptions(ExtractorOptions):
    """``model``: hub id, local folder, or short name (see ``ls extractors --long``).

    ``convention``: the model's prompt; "auto": by its tokenizer and type. ``instruction``: task of the queries in one
    sentence; None: the convention's. ``dim``: the first values of the embedding, for Matryoshka models; None: all.
    ``min_pixels``, ``max_pixels``: an image is resized to a size between them; None: the convention's. ``max_tokens``:
    of a prompt with its images. ``batch_tokens``: padded tokens computed at once.
    """

    model: str = Field(min_length=1)
    revision: str | None = None
    convention: Literal["auto", "qwen3vl", "gme", "procir"] = "auto"
    instruction: str | None = None
    dim: int | None = Field(None, ge=1)
    min_pixels: int | None = Field(None, ge=1)
    max_pixels: int | None = Field(None, ge=1)
    max_tokens: int | None = Field(None, ge=16)
    batch_tokens: int = Field(16_384, ge=1)


class MllmExtractor(Extractor):
    """Joint model without a composer: f_qry of (image, text), f_tar of an image."""

    title: ClassVar[str] = "multimodal LLM embeddings: Qwen3-VL-Embedding, GME-Qwen2-VL, ProCIR"
    Options = MllmOptions
    tables: ClassVar[tuple[str, ...]] = ("query", "target")
    execution_only: ClassVar[tuple[str, ...]] = ("batch_tokens",)
    stated = tuple(MllmOptions.model_fields.keys() - {"batch_tokens", *ExtractorOptions.model_fields})
    reads_dialogs: ClassVar[bool] = True
    cards: ClassVar[tuple[Card, ...]] = _cards.MLLM
    options: MllmOptions
    tokens: Chat

    def __init__(self, options: MllmOptions, device: torch.device):
        super().__init__(options, device)
        known, checkpoint = _cards.located(_cards.MLLM, options)
        self.checkpoint, self.tokenizer = checkpoint, hub.load_tokenizer(checkpoint)
        template = chat_template(checkpoint, self.tokenizer)
        if IMAGE_TOKEN not in self.tokenizer.get_vocab():
            raise hub.ModelError(f"model {options.model!r}: its tokenizer has no image token {IMAGE_TOKEN}")
        kind = str(checkpoint.json("config.json").get("model_type", ""))
        self.convention = format_of(options.convention, kind, self.tokenizer.get_vocab(), options.model)
        self.form = form = FORMATS[self.convention]
        self.model = hub.load_model(checkpoint, self.compute, device)
        self.width = int(getattr(self.model.config, "text_config", self.model.config).hidden_size)
        if (options.dim or 0) > self.width:
            raise hub.ModelError(f"extractor.dim = {options.dim}, but model {options.model!r} has {self.width} values")
        self.processor = self._processor()
        length = options.max_tokens or form.max_tokens
        self.tokens = Chat(self.tokenizer, template, form, options.instruction, length, options.model)
        self.tokens.require_place(self.model)
        if (wanted := getattr(self.model.config, "image_token_id", None)) != self.tokens.image_id:
            what = f"{IMAGE_TOKEN} is id {self.tokens.image_id} of its tokenizer and id {wanted} of config.json"
            raise hub.ModelError(f"model {options.model!r}: {what}: take both from one download")
        self.tokens.reserve(self._cells(self.processor.size.longest_edge))
        self._typed = "mm_token_type_ids" in inspect.signature(self.model.forward).parameters
        seen = tuple(dict.fromkeys((*(known.contaminated_on if known else ()), *options.contaminated_on)))
        dims = {table: self.dim(table) for table in self.tables}
        self.card = replace(_cards.card_of(known, options.model, seen), dims=dims)

    def _processor(self) -> Any:
        """Return the image processor with the pixel bounds of the options, the convention or its own configuration."""
        processor = hub.load_image_processor(self.checkpoint)
        if not hasattr(processor, "merge_size"):
            what = f"{type(processor).__name__} does not make the patches of a Qwen-VL model"
            raise hub.ModelError(f"model {self.options.model!r}: its image processor {what}")
        low, high = self.form.pixels or (processor.size.shortest_edge, processor.size.longest_edge)
        low, high = self.options.min_pixels or low, self.options.max_pixels or high
        if low > high:
            fix = "set extractor.min_pixels and extractor.max_pixels together"
            raise hub.ModelError(f"min_pixels {low:,} above max_pixels {high:,}: {fix}")
        about = ("image_processor_type", "processor_class", "min_pixels", "max_pixels")  # of its class, or set here
        settings = {key: value for key, value in processor.to_dict().items() if key not in about}
        return type(processor)(**{**settings, "size": {"shortest_edge": low, "longest_edge": high}})

    def _cells(self, pixels: int) -> int:
        """Return the largest number of image tokens of an image of ``pixels`` after the resize."""
        return pixels // (self.processor.patch_size * self.processor.merge_size) ** 2

    def dim(self, table: str) -> int:
        return self.options.dim or self.width

    def semantic(self) -> dict[str, Any]:
        return super().semantic() | {
            **self._of_checkpoint(),
            "instruction": self.tokens.instruction,
            "preprocessing": hub.plain(self.processor.to_dict()) | {"class": type(self.processor).__name__},
            "pooling": f"last {self.form.pool}" if self.form.pool else "last token",
            "dim": self.dim("query"),
            "decode": decoder(),
        }

    def prepare(self, image: Pillow.Image) -> dict[str, Any]:
        """Return ``pixel_values`` [patches, 3 * P * P] in the computation's dtype, and ``image_grid_thw`` int64 [3].

        The processor repeats each patch for every frame of a video; the repetition is left to ``_patches``.
        """
        found = self.processor(images=[image], return_tensors="np")
        patches = np.asarray(found["pixel_values"])
        frames = patches.reshape(len(patches), 3, self.processor.temporal_patch_size, -1)
        values = torch.from_numpy(np.ascontiguousarray(frames[:, :, 0]).reshape(len(patches), -1)).to(self.compute)
        return {"pixel_values": values, "image_grid_thw": np.asarray(found["image_grid_thw"])[0]}

    def _patches(self, images: Sequence[dict[str, Any]]) -> Tensor:
        """Return the patches of all images as the model reads them, [patches, 3 * frames * P * P], on the device."""
        values = torch.cat([i["pixel_values"] for i in images]).to(self.device, non_blocking=True)
        one = values.reshape(len(values), 3, 1, -1)
        return one.expand(-1, -1, self.processor.temporal_patch_size, -1).reshape(len(values), -1)

    def prepared_pixels(self, width: int, height: int) -> int:
        return max(width * height, self.processor.size.longest_edge)

    def prepare_dialog(self, texts: Sequence[str]) -> np.ndarray:
        return self.tokens.encode_turns([texts])[0]

    def _image_features(self, images: list[dict[str, Any]]) -> Tensor:
        return self._pair_features(images, [self.tokens.target] * len(images))

    def _pair_features(self, images: list[Any], prompts: list[np.ndarray]) -> Tensor:
        """Return embeddings [n, D] of prompts with their images (one, or a list of one per turn)."""
        shown = [image if isinstance(image, list | tuple) else [image] for image in images]
        ids = [self._expanded(p, i) for p, i in zip(prompts, shown, strict=True)]
        rows: list[Tensor | None] = [None] * len(ids)
        for part in _parts([len(i) for i in ids], self.options.batch_tokens):
            for n, row in zip(part, self._run_model([ids[n] for n in part], [shown[n] for n in part]), strict=True):
                rows[n] = row
        found = torch.stack([row for row in rows if row is not None])[:, : self.options.dim]
        if self.compute != torch.float32 and self.device.type == "cpu" and not torch.isfinite(found).all():
            what = f"gives NaN or Inf in {self.options.dtype} on a CPU: use --precision fp32, or a GPU"
            raise ExtractorError(f"model {self.options.model!r} {what}")
        return found

    def _expanded(self, prompt: np.ndarray, images: Sequence[dict[str, Any]]) -> np.ndarray:
        """Repeat each image token of ``prompt`` to the number of its image's cells."""
        counts = np.ones(len(prompt), dtype=np.int64)
        cells = [int(np.prod(i["image_grid_thw"])) // self.processor.merge_size**2 for i in images]
        counts[prompt == self.tokens.image_id] = cells
        return np.repeat(prompt, counts)

    def _run_model(self, ids: list[np.ndarray], images: list[Sequence[dict[str, Any]]]) -> Tensor:
        padded, mask = pad_ids(ids, self.tokenizer.pad_token_id, left=self.form.padding == "left")
        flat = [image for turns in images for image in turns]
        grids = np.stack([i["image_grid_thw"] for i in flat])
        arrays = {"input_ids": padded, "attention_mask": mask, "image_grid_thw": grids}
        inputs = {name: torch.from_numpy(array) for name, array in arrays.items()}
        inputs["pixel_values"] = self._patches(flat)
        if self._typed:
            inputs["mm_token_type_ids"] = (inputs["input_ids"] == self.tokens.image_id).int()
        if hasattr(self.model, "rope_deltas"):
            self.model.rope_deltas = None  # left by the previous batch
        inputs = {name: value.to(self.device, non_blocking=True) for name, value in inputs.items()}
        states = self.model(**inputs, use_cache=False).last_hidden_state.float()
        wanted = mask if self.tokens.pool_id is None else (padded == self.tokens.pool_id) & (mask == 1)
        last = padded.shape[1] - 1 - np.flip(wanted, 1).argmax(1)
        return states[torch.arange(len(ids), device=states.device), torch.from_numpy(last.copy()).to(states.device)]


def _parts(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Yield the items, longest first, in groups of at most ``budget`` padded tokens (one item at least)."""
    order = sorted(range(len(lengths)), key=lambda n: (-lengths[n], n))
    while order:
        count = max(1, budget // max(1, lengths[order[0]]))
        yield order[:count]
        order = order[count:]
