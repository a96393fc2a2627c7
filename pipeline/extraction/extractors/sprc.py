"""SPRC (Bai et al., ICLR 2024) and SPN4CIR (Feng et al., ACM MM 2024) on it: BLIP-2's vision tower and Q-Former.

Parameter names, preprocessing and the computation of a query follow both public repositories; their files are loaded
unchanged, tensors only. f_qry is their query feature. They score a candidate by the best of its 32 tokens; this project
ranks by one target row per image, so f_tar is the mean of the tokens, and recalls differ from the published ones.
"""

from __future__ import annotations

import re
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from PIL import Image as Pillow
from PIL import ImageOps
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import normalize

from manifests.identity import file_digest
from manifests.text import on_one_line
from pipeline.extraction import hub
from pipeline.extraction.extractors import _cards
from pipeline.extraction.extractors._qformer import QFormer, sizes_of
from pipeline.extraction.extractors.base import Card, Extractor, ExtractorOptions
from pipeline.extraction.images import decoder
from pipeline.extraction.tokens import Tokens

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # as in CLIP
MAX_TOKENS, MAX_WORDS, RATIO = 32, 50, 1.25
_MARKS = re.compile(r"([.!\"()*#:;~])")


class SprcOptions(ExtractorOptions):
    """``model``: the .pt file of SPRC or SPN4CIR. ``tokenizer``: bert-base-uncased, hub id or folder.

    ``trained_on``: dataset of the fit; its test pairs are contaminated. The numbers of heads are options because the
    weights do not determine them.
    """

    model: str = Field(min_length=1)
    tokenizer: str = "google-bert/bert-base-uncased"
    trained_on: Literal["fashioniq", "cirr"] = "fashioniq"
    vision_heads: int = Field(16, ge=1)
    text_heads: int = Field(12, ge=1)


class SprcExtractor(Extractor):
    """The Q-Former encodes image and text, then its output with the text; the second [CLS] output is the query."""

    title: ClassVar[str] = "SPRC and SPN4CIR (BLIP-2 Q-Former), from their published files"
    Options = SprcOptions
    tables: ClassVar[tuple[str, ...]] = ("query", "target")
    stated: ClassVar[tuple[str, ...]] = ("model", "tokenizer", "vision_heads", "text_heads")
    execution_only: ClassVar[tuple[str, ...]] = ("trained_on",)
    cards: ClassVar[tuple[Card, ...]] = _cards.SPRC
    options: SprcOptions
    tokens: Tokens

    def __init__(self, options: SprcOptions, device: torch.device):
        super().__init__(options, device)
        self.file = Path(options.model).expanduser()
        weights = _weights_of(self.file)
        try:
            self.vision, self.size = _vision(weights, options.vision_heads)
            self.first = _qformer(weights, "Qformer.bert.", options.text_heads)
            second = "Qformer_query.bert." if "text_proj_q.weight" in weights else "Qformer.bert."
            self.second = _qformer(weights, second, options.text_heads)
            self.to_text = _linear(weights, "text_proj_q" if "text_proj_q.weight" in weights else "text_proj")
            self.to_image = _linear(weights, "vision_proj")
            self.asked = nn.Parameter(weights["query_tokens"])
        except (KeyError, RuntimeError, ValueError) as error:
            what = f"is no whole checkpoint of SPRC or SPN4CIR: {on_one_line(repr(error))}"
            raise hub.ModelError(f"{self.file} {what}") from error
        parts = [self.vision, self.first, self.second, self.to_text, self.to_image]
        self.network = nn.ModuleList(parts).to(device, self.compute).eval().requires_grad_(False)
        self.asked = nn.Parameter(self.asked.to(device, self.compute), requires_grad=False)
        tokenizer = hub.load_tokenizer(hub.locate(options.tokenizer))
        self.tokens = Tokens(tokenizer, MAX_TOKENS, name=options.tokenizer, clean=blip_caption)
        seen = ("mt_fashioniq",) if options.trained_on == "fashioniq" else ()
        seen = tuple(dict.fromkeys((*seen, *options.contaminated_on)))
        self.card = Card(_cards.SPRC[0].licence, options.model, seen, dims={t: self.dim(t) for t in self.tables})

    def dim(self, table: str) -> int:
        return self.to_text.out_features

    @cached_property
    def _digest(self) -> str:
        return file_digest(self.file)

    def semantic(self) -> dict[str, Any]:
        return super().semantic() | {
            "weights": self._digest,
            "heads": [self.options.vision_heads, self.options.text_heads],
            "tokenizer": self.tokens.semantic(),
            "preprocessing": {"pad_ratio": RATIO, "size": self.size, "clean": "blip_caption"},
            "pooling": "target: mean of the query tokens",
            "decode": decoder(),
            "transformers": version("transformers").split(".")[0],
        }

    def prepare(self, image: Pillow.Image) -> np.ndarray:
        """Return uint8 [3, size, size]: padded to at most 1.25 : 1, shorter side resized, center crop."""
        return target_pad(image, self.size)

    def prepared_pixels(self, width: int, height: int) -> int:
        longest = max(width, height)  # includes the bars of ``target_pad``
        return longest * max(int(longest / RATIO) + 1, min(width, height))

    def _look(self, images: list[np.ndarray]) -> Tensor:
        """Return the vision tower's patches [n, P, width]."""
        pixels = torch.from_numpy(np.stack(images)).to(self.device, self.compute) / 255
        mean, std = (torch.tensor(v, device=self.device, dtype=self.compute).view(1, 3, 1, 1) for v in (MEAN, STD))
        return self.vision(pixel_values=(pixels - mean) / std).last_hidden_state

    def _pair_features(self, images: list[np.ndarray], texts: list[np.ndarray]) -> Tensor:
        ids, mask = self.tokens.padded(texts, self.device)
        asked = self.asked.expand(len(images), -1, -1)
        count = asked.shape[1]
        prompt = self.first(asked, self._look(images), ids, mask)[:, :count]
        return self.to_text(self.second(prompt, None, ids, mask)[:, count])

    def _image_features(self, images: list[np.ndarray]) -> Tensor:
        answers = self.first(self.asked.expand(len(images), -1, -1), self._look(images), None, None)
        return normalize(self.to_image(answers).float(), dim=-1).mean(1)


def blip_caption(text: str) -> str:
    """Apply LAVIS' caption preprocessing: lowercase, some punctuation to spaces, at most 50 words."""
    text = re.sub(r"\s{2,}", " ", _MARKS.sub(" ", text.lower())).rstrip("\n").strip(" ")
    return " ".join(text.split(" ")[:MAX_WORDS])


def target_pad(image: Pillow.Image, size: int) -> np.ndarray:
    """Apply CLIP4CIR's "targetpad" (black bars up to ``RATIO`` : 1); return uint8 [3, size, size]."""
    width, height = image.size
    longest = max(width, height)
    if longest / min(width, height) >= RATIO:
        bars = [max(int((longest / RATIO - side) / 2), 0) for side in (width, height)]
        image = ImageOps.expand(image, (bars[0], bars[1], bars[0], bars[1]), fill=0)
    width, height = image.size
    short = min(width, height)
    width, height = (size if side == short else int(size * side / short) for side in (width, height))
    image = image.resize((width, height), Pillow.Resampling.BICUBIC)
    left, top = round((width - size) / 2), round((height - size) / 2)
    cut = image.crop((left, top, left + size, top + size))
    return np.ascontiguousarray(np.asarray(cut, dtype=np.uint8).transpose(2, 0, 1))


def _weights_of(file: Path) -> dict[str, Tensor]:
    """Return the state dict of a public file: SPRC {"Blip2QformerCirAlignPrompt": ...}, SPN4CIR {"state_dict": ...}."""
    if not file.is_file():
        fix = "fetch the .pt file that the SPRC or SPN4CIR repository links to, and give its path"
        raise hub.ModelError(f"no checkpoint file {str(file)!r}: {fix}")
    try:
        found = torch.load(file, map_location="cpu", weights_only=True)
        weights = found.get("Blip2QformerCirAlignPrompt") or found["state_dict"]
        return {name.removeprefix("blip_model."): value.float() for name, value in weights.items()}
    except Exception as error:  # unpickling raises many types; all mean "another kind of file"
        what = f"is no checkpoint of SPRC or SPN4CIR: {on_one_line(repr(error))}"
        raise hub.ModelError(f"{file} {what}") from error


def _vision(weights: dict[str, Tensor], heads: int) -> tuple[Any, int]:
    """Return EVA's ViT in transformers' BLIP-2 implementation, and its image size."""
    from transformers import Blip2VisionConfig, Blip2VisionModel

    ours = vision_names(weights)
    width, _, patch, _ = ours["embeddings.patch_embedding.weight"].shape
    size = patch * round((ours["embeddings.position_embedding"].shape[1] - 1) ** 0.5)
    layers = 1 + max(int(name.split(".")[2]) for name in ours if name.startswith("encoder.layers."))
    tower = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads}
    inner = len(ours["encoder.layers.0.mlp.fc1.weight"])
    model = Blip2VisionModel(Blip2VisionConfig(**tower, intermediate_size=inner, image_size=size, patch_size=patch))
    model.load_state_dict(ours)
    model.post_layernorm.eps = 1e-5  # LAVIS' ln_vision has torch's default; the blocks have 1e-6
    return model, size


def vision_names(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the vision tower's weights as transformers' conversion of BLIP-2 does."""
    rename = (
        ("visual_encoder.cls_token", "embeddings.class_embedding"),
        ("visual_encoder.pos_embed", "embeddings.position_embedding"),
        ("visual_encoder.patch_embed.proj.", "embeddings.patch_embedding."),
        ("visual_encoder.blocks.", "encoder.layers."),
        ("ln_vision.", "post_layernorm."),
    )
    norms = ((".norm1.", ".layer_norm1."), (".norm2.", ".layer_norm2."))
    parts = (*norms, (".attn.proj.", ".self_attn.projection."), (".attn.", ".self_attn."))
    made: dict[str, Tensor] = {}
    for name, value in weights.items():
        for old, new in rename:
            if name.startswith(old):
                ours = new + name.removeprefix(old)
                for a, b in parts:
                    ours = ours.replace(a, b)
                made[ours] = value
    for name in [n for n in made if n.endswith(".q_bias")]:
        q, v = made.pop(name), made.pop(name.replace(".q_bias", ".v_bias"))
        made[name.replace(".q_bias", ".qkv.bias")] = torch.cat([q, torch.zeros_like(q), v])
    return made


def _qformer(weights: dict[str, Tensor], prefix: str, heads: int) -> QFormer:
    mine = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
    mine.pop("embeddings.position_ids", None)
    model = QFormer(sizes_of(mine, heads))
    model.load_state_dict(mine)
    return model


def _linear(weights: dict[str, Tensor], name: str) -> nn.Linear:
    out, width = weights[f"{name}.weight"].shape
    layer = nn.Linear(width, out)
    layer.load_state_dict({"weight": weights[f"{name}.weight"], "bias": weights[f"{name}.bias"]})
    return layer
