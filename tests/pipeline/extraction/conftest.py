"""Real models and images of a size that loads in milliseconds."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as Pillow
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
)

from manifests.schema import Component, Dataset, Gallery, Image, RunSpec, Session, Turn
from pipeline.extraction.extractors import load_extractor
from pipeline.extraction.extractors.base import Extractor

WORDS = [
    "a",
    "the",
    "is",
    "with",
    "and",
    "red",
    "blue",
    "green",
    "black",
    "dress",
    "shirt",
    "top",
    "sleeve",
    "long",
    "short",
    "more",
    "less",
    "floral",
    "plain",
    "collar",
    ".",
]
SIZE = 32


def tokenizer(length: int, begin: str, end: str, inputs: list[str]) -> PreTrainedTokenizerFast:
    special = ["<pad>", "<unk>", begin, end]
    vocabulary = {word: n for n, word in enumerate([*special, *WORDS])}
    built = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    built.normalizer = normalizers.Lowercase()
    built.pre_tokenizer = pre_tokenizers.Whitespace()
    built.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A {end}", special_tokens=[(begin, vocabulary[begin]), (end, vocabulary[end])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=built,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token=begin,
        eos_token=end,
        model_max_length=length,
        model_input_names=inputs,
        padding_side="right",
    )


def towers(length: int) -> dict[str, dict[str, Any]]:
    shared = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {
        **shared,
        "vocab_size": 4 + len(WORDS),
        "max_position_embeddings": length,
        "bos_token_id": 2,
        "eos_token_id": 3,
        "pad_token_id": 0,
    }
    return {"text_config": text, "vision_config": {**shared, "image_size": SIZE, "patch_size": 8}}


def save_clip(folder: Path, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    CLIPModel(CLIPConfig(**towers(16), projection_dim=12)).save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE}).save_pretrained(
        folder
    )
    tokenizer(16, "<s>", "</s>", ["input_ids", "attention_mask"]).save_pretrained(folder)
    return folder


def save_siglip(folder: Path) -> Path:
    torch.manual_seed(1)
    SiglipModel(SiglipConfig(**towers(12))).save_pretrained(folder)
    SiglipImageProcessorPil(size={"height": SIZE, "width": SIZE}).save_pretrained(folder)
    tokenizer(12, "<s>", "</s>", ["input_ids"]).save_pretrained(folder)
    return folder


def save_bert(folder: Path, seed: int = 2, pooler: bool = True) -> Path:
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=4 + len(WORDS),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
    )
    BertModel(config, add_pooling_layer=pooler).save_pretrained(folder)
    tokenizer(32, "[CLS]", "[SEP]", ["input_ids", "token_type_ids", "attention_mask"]).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_clip(tmp_path_factory.mktemp("models") / "clip")


@pytest.fixture(scope="session")
def siglip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_siglip(tmp_path_factory.mktemp("models") / "siglip")


@pytest.fixture(scope="session")
def bert_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bert(tmp_path_factory.mktemp("models") / "bert")


def spec_of(name: str, **options: Any) -> RunSpec:
    return RunSpec(name="test", dataset=Component(name="jsonl"), extractor=Component(name=name, **options))


@pytest.fixture(scope="session")
def load() -> Callable[..., Extractor]:
    """``load("clip", model=folder, dtype="float32")`` on the CPU, features stored in float32 unless told."""

    def loader(name: str, model: Path | str, **options: Any) -> Extractor:
        return load_extractor(spec_of(name, model=str(model), **{"store_dtype": "float32", **options}), "cpu")

    return loader


def sentence(rng: random.Random) -> str:
    return " ".join(rng.choice(WORDS[:-1]) for _ in range(rng.randint(1, 9)))


def picture(seed: int, size: tuple[int, int] = (40, 48)) -> Pillow.Image:
    """A smooth colour pattern: every JPEG coder keeps it nearly as it is."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Pillow.fromarray(small).resize(size, Pillow.Resampling.BILINEAR)


def build_dataset(root: Path | None, images: int = 12, sessions: int = 8, name: str = "tiny", seed: int = 0) -> Dataset:
    """Sessions of 2 to 3 turns over ``images`` images, which have captions, and JPEG files when there is a ``root``."""
    rng = random.Random(seed)
    ids = [f"i{n:03}" for n in range(images)]
    if root is not None:
        root.mkdir(parents=True, exist_ok=True)
        for n, image in enumerate(ids):
            if not (root / f"{image}.jpg").exists():
                picture(seed * 1000 + n).save(root / f"{image}.jpg", quality=90)
    made = []
    for n in range(sessions):
        chosen = rng.sample(ids, rng.randint(3, 4))
        turns = tuple(Turn(reference=i, captions=(sentence(rng), sentence(rng))) for i in chosen[:-1])
        made.append(Session(id=str(n), category="dress", split="train", turns=turns, target=chosen[-1]))
    catalogue = {
        i: Image(id=i, file=f"{i}.jpg" if root is not None else None, caption=f"a {sentence(rng)} dress {n}")
        for n, i in enumerate(ids)
    }
    gallery = Gallery(category="dress", split="train", images=tuple(ids))
    return Dataset(name=name, images=catalogue, sessions=tuple(made), galleries=(gallery,), images_root=root)


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return build_dataset(tmp_path / "images")
