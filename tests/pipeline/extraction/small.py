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
from .small_mllm import save_gme, save_procir, save_qwen3vl

TEXTS = ["red dress", "a long sleeve with a floral collar and more plain", "blue", "less plain . more red", "top"]
TINY: dict[str, Any] = {
    "width": 32,
    "layers": 2,
    "heads": 2,
    "image_stem": 8,
    "image_widths": [8, 16],
    "image_depths": [1, 1],
    "image_layer": "basic",
    "max_tokens": 12,
    "store_dtype": "float32",
}
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
        {letter: n for n, letter in enumerate(letters)},
        [],
        model_max_length=24,
        padding_side="right",
        model_input_names=["input_ids"],
    ).save_pretrained(folder)
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


def sprc_weights(second: bool = False) -> dict[str, torch.Tensor]:
    """A state dict with the names of SPRC's public checkpoints (and SPN4CIR's second stage), of tiny sizes."""
    width, vision, inner, patches, queries = 16, 24, 32, 16, 4
    linear = {"dense": (inner, width)}
    shapes: dict[str, tuple[int, ...]] = {
        "query_tokens": (1, queries, width),
        "prompt_tokens": (1, queries, width),
        "temp": (),
        "visual_encoder.cls_token": (1, 1, vision),
        "visual_encoder.pos_embed": (1, 1 + patches, vision),
        "visual_encoder.patch_embed.proj.weight": (vision, 3, 8, 8),
        "visual_encoder.patch_embed.proj.bias": (vision,),
        "ln_vision.weight": (vision,),
        "ln_vision.bias": (vision,),
        "vision_proj.weight": (12, width),
        "vision_proj.bias": (12,),
        "text_proj.weight": (12, width),
        "text_proj.bias": (12,),
        "itm_head.weight": (2, width),
        "itm_head.bias": (2,),
    }
    for i in range(2):
        block = f"visual_encoder.blocks.{i}."
        for name in ("norm1", "norm2"):
            shapes |= {f"{block}{name}.weight": (vision,), f"{block}{name}.bias": (vision,)}
        shapes |= {
            f"{block}attn.q_bias": (vision,),
            f"{block}attn.v_bias": (vision,),
            f"{block}attn.qkv.weight": (3 * vision, vision),
            f"{block}attn.proj.weight": (vision, vision),
            f"{block}attn.proj.bias": (vision,),
            f"{block}mlp.fc1.weight": (inner, vision),
            f"{block}mlp.fc1.bias": (inner,),
            f"{block}mlp.fc2.weight": (vision, inner),
            f"{block}mlp.fc2.bias": (vision,),
        }
    shapes |= {
        "Qformer.bert.embeddings.word_embeddings.weight": (26, width),
        "Qformer.bert.embeddings.position_embeddings.weight": (40, width),
        "Qformer.bert.embeddings.LayerNorm.weight": (width,),
        "Qformer.bert.embeddings.LayerNorm.bias": (width,),
        "Qformer.cls.predictions.bias": (26,),
    }
    for i in range(4):
        layer = f"Qformer.bert.encoder.layer.{i}."
        for kind in ("attention", "crossattention") if i % 2 == 0 else ("attention",):
            source = vision if kind == "crossattention" else width
            for name in ("query", "key", "value"):
                shapes |= {
                    f"{layer}{kind}.self.{name}.weight": (width, width if name == "query" else source),
                    f"{layer}{kind}.self.{name}.bias": (width,),
                }
            shapes |= {
                f"{layer}{kind}.output.dense.weight": (width, width),
                f"{layer}{kind}.output.dense.bias": (width,),
                f"{layer}{kind}.output.LayerNorm.weight": (width,),
                f"{layer}{kind}.output.LayerNorm.bias": (width,),
            }
        for kind in ("", "_query"):
            shapes |= {
                f"{layer}intermediate{kind}.dense.weight": linear["dense"],
                f"{layer}intermediate{kind}.dense.bias": (inner,),
                f"{layer}output{kind}.dense.weight": (width, inner),
                f"{layer}output{kind}.dense.bias": (width,),
                f"{layer}output{kind}.LayerNorm.weight": (width,),
                f"{layer}output{kind}.LayerNorm.bias": (width,),
            }
    generator = torch.Generator().manual_seed(6)

    def draw(name: str, shape: tuple[int, ...]) -> torch.Tensor:
        noise = 0.3 * torch.randn(shape, generator=generator)
        return noise + 1 if "norm" in name.lower() and name.endswith(".weight") else noise

    made = {name: draw(name, shape) for name, shape in shapes.items()}
    made["Qformer.bert.embeddings.position_ids"] = torch.arange(40)[None]
    if second:
        made |= {
            n.replace("Qformer.", "Qformer_query.", 1): draw(n, tuple(v.shape))
            for n, v in made.items()
            if n.startswith("Qformer.bert.") and v.is_floating_point()
        }
        made |= {
            f"text_proj_q.{part}": draw(part, tuple(made[f"text_proj.{part}"].shape)) for part in ("weight", "bias")
        }
    return made


def save_sprc(folder: Path, second: bool = False) -> Extractor:
    bert = save_bert(folder / "bert")
    weights = sprc_weights(second)
    state = (
        {"state_dict": {f"blip_model.{n}": v for n, v in weights.items()}}
        if second
        else {"Blip2QformerCirAlignPrompt": weights}
    )
    torch.save({"epoch": 3, **state}, folder / "sprc.pt")
    options = {"model": str(folder / "sprc.pt"), "tokenizer": str(bert), "vision_heads": 2, "text_heads": 2}
    return load_extractor(spec_of("sprc", **options, store_dtype="float32"), "cpu")


SMALL = {"dim": 8, "min_pixels": 1024, "max_pixels": 4096, "max_tokens": 128, "instruction": "Find the garment"}


def _mllm(save: Callable[[Path], Path], folder: Path) -> Extractor:
    return load_extractor(spec_of("mllm", model=str(save(folder)), store_dtype="float32", **SMALL), "cpu")


# case -> how to build it; a case's name starts with its extractor's
CASES: dict[str, Callable[[Path], Extractor]] = {
    "caption": lambda folder: _loaded("caption", save_bert, folder),
    "clip": lambda folder: _loaded("clip", save_clip, folder),
    "clip-siglip": lambda folder: _loaded("clip", save_siglip, folder),
    "clip-naflex": lambda folder: _loaded("clip", save_naflex, folder),
    "mllm-qwen3vl": lambda folder: _mllm(save_qwen3vl, folder),
    "mllm-gme": lambda folder: _mllm(save_gme, folder),
    "mllm-procir": lambda folder: _mllm(save_procir, folder),
    "sprc": save_sprc,
    "sprc-spn4cir": lambda folder: save_sprc(folder, second=True),
    "fashionbert": lambda folder: saved("fashionbert", folder, **BERT),
    "fashionvlp": lambda folder: saved("fashionvlp", folder, **VLP),
}
LISTED = {case.partition("-")[0] for case in CASES} | {"imported"}  # arrays made elsewhere are no model
CASES |= {
    name: lambda _, n=name: load_extractor(spec_of(n), "cpu") for name in extractors.names() if name not in LISTED
}
