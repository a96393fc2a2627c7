"""A small real instance of every extractor, built on the spot: the contract test goes over all of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import (
    ResNetConfig,
    ResNetModel,
    Siglip2Config,
    Siglip2ImageProcessorPil,
    Siglip2Model,
    Siglip2Tokenizer,
)

from pipeline.extraction.extractors import extractors, load_extractor
from pipeline.extraction.extractors.base import Extractor

from .conftest import save_bert, save_clip, save_siglip, spec_of, towers

TEXTS = ["red dress", "a long sleeve with a floral collar and more plain", "blue", "less plain . more red", "top"]
TINY: dict[str, Any] = {
    "width": 32, "layers": 2, "heads": 2, "image_stem": 8, "image_widths": [8, 16], "image_depths": [1, 1],
    "image_layer": "basic", "max_tokens": 12, "store_dtype": "float32",
}  # fmt: skip
VLP = {**TINY, "image_size": 32, "landmarks": 3}
BERT = {**TINY, "grid": 2, "patch": 32}


def save_naflex(folder: Path) -> Path:
    torch.manual_seed(4)
    sizes = towers(24)
    vision = {k: v for k, v in sizes["vision_config"].items() if k != "image_size"} | {"num_patches": 16}
    text = {**sizes["text_config"], "vocab_size": 64, "bos_token_id": 2, "eos_token_id": 1}
    Siglip2Model(Siglip2Config(text_config=text, vision_config=vision)).save_pretrained(folder)
    Siglip2ImageProcessorPil(patch_size=8, max_num_patches=16).save_pretrained(folder)
    letters = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", ".", *"abcdefghijklmnopqrstuvwxyz"]
    Siglip2Tokenizer(
        {letter: n for n, letter in enumerate(letters)}, [], model_max_length=24, padding_side="right",
        model_input_names=["input_ids"],
    ).save_pretrained(folder)  # fmt: skip
    return folder


def save_resnet(folder: Path) -> Path:
    torch.manual_seed(5)
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    ResNetModel(config).save_pretrained(folder)
    return folder


def fresh(name: str, **options: Any) -> Any:
    """An untrained joint model of the sizes given."""
    family = extractors.get(name)
    return family.fresh(family.Options(**options), torch.device("cpu"), TEXTS)  # type: ignore[attr-defined]


def saved(name: str, folder: Path, **options: Any) -> Extractor:
    fresh(name, **options).save(folder)
    return load_extractor(spec_of(name, **{**options, "model": str(folder)}), "cpu")


def _loaded(name: str, save: Callable[[Path], Path], folder: Path) -> Extractor:
    return load_extractor(spec_of(name, model=str(save(folder)), store_dtype="float32"), "cpu")


# case -> how to build it; a case's name starts with its extractor's
CASES: dict[str, Callable[[Path], Extractor]] = {
    "caption": lambda folder: _loaded("caption", save_bert, folder),
    "clip": lambda folder: _loaded("clip", save_clip, folder),
    "clip-siglip": lambda folder: _loaded("clip", save_siglip, folder),
    "clip-naflex": lambda folder: _loaded("clip", save_naflex, folder),
    "fashionbert": lambda folder: saved("fashionbert", folder, **BERT),
    "fashionvlp": lambda folder: saved("fashionvlp", folder, **VLP),
}
