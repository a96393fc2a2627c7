"""Multimodal LLM embeddings: prompts, pooled position, padding, batches by cost, and refused models."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from pipeline.extraction.extractors import load_extractor
from pipeline.extraction.extractors.base import Extractor, ExtractorError
from pipeline.extraction.hub import ModelError

from .conftest import picture, spec_of
from .small_mllm import save_gme, save_procir, save_qwen3vl

SAVE: dict[str, Callable[..., Path]] = {"qwen3vl": save_qwen3vl, "gme": save_gme, "procir": save_procir}
PIXELS = {"min_pixels": 1024, "max_pixels": 4096}
IMAGE = "<|vision_start|>{pads}<|vision_end|>"
SYSTEM = "<|im_start|>system\n{}<|im_end|>\n"
USER = "<|im_start|>user\n{}<|im_end|>\n"
ANSWER = "<|im_start|>assistant\n<think>\n\n</think>\n\n<emb_all><|im_end|>\n"
# (query with the instruction "Find the garment" and the text "red", target), as the families' own code writes them
PROMPTS = {
    "qwen3vl": (
        SYSTEM.format("Find the garment.") + USER.format(IMAGE + "red") + "<|im_start|>assistant\n",
        SYSTEM.format("Represent the user's input.") + USER.format(IMAGE) + "<|im_start|>assistant\n",
    ),
    "gme": (
        SYSTEM.format("Find the garment.") + USER.format(IMAGE + "red") + "<|im_start|>assistant\n<|endoftext|>",
        SYSTEM.format("You are a helpful assistant.") + USER.format(IMAGE) + "<|im_start|>assistant\n<|endoftext|>",
    ),
    "procir": (USER.format(IMAGE) + ANSWER + USER.format("red") + ANSWER, USER.format(IMAGE) + ANSWER),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: save(tmp_path_factory.mktemp("mllm") / name) for name, save in SAVE.items()}


def loaded(folder: Path, **options: Any) -> Extractor:
    return load_extractor(spec_of("mllm", model=str(folder), store_dtype="float32", **{**PIXELS, **options}), "cpu")


def by_hand(extractor: Any, folder: Path, prompt: str, image: Any) -> np.ndarray:
    """The embedding of one prompt without padding, from the checkpoint and the prompt's text alone."""
    model = AutoModel.from_pretrained(folder).eval()
    pixels = extractor.processor(images=[image], return_tensors="pt")
    cells = int(pixels["image_grid_thw"].prod()) // 4
    text = prompt.replace("{pads}", "<|image_pad|>" * cells)
    ids = torch.tensor([extractor.tokenizer(text)["input_ids"]])
    kinds = (ids == extractor.tokens.image_id).int()
    with torch.inference_mode():
        states = model(input_ids=ids, attention_mask=torch.ones_like(ids), mm_token_type_ids=kinds, **pixels)
    place = -1
    if "<emb_all>" in prompt:
        place = int((ids[0] == extractor.tokenizer.convert_tokens_to_ids("<emb_all>")).nonzero()[-1])
    row = states.last_hidden_state[0, place].numpy()
    return row / np.linalg.norm(row)


@pytest.mark.parametrize("name", SAVE)
def test_rows_are_those_of_the_family_s_prompt(folders: dict[str, Path], name: str) -> None:
    extractor = loaded(folders[name], instruction=None if name == "procir" else "Find the garment")
    image, (query, target) = picture(3, (61, 40)), PROMPTS[name]
    wide = [image, picture(4, (64, 64))]  # the other member is longer: the row at hand is padded
    rows = extractor.encode_pairs(wide, ["red", "much longer and more colorful"])
    np.testing.assert_allclose(rows[0], by_hand(extractor, folders[name], query, image), atol=1e-5)
    np.testing.assert_allclose(
        extractor.encode_images(wide)[0], by_hand(extractor, folders[name], target, image), atol=1e-5
    )


@pytest.mark.parametrize("name", SAVE)
def test_batches_by_tokens_give_the_same_rows(folders: dict[str, Path], name: str) -> None:
    images = [picture(n, (30 + 17 * n, 40)) for n in range(5)]
    texts = ["red", "a long sleeve and more", "x", "less plain, and blue", "top"]
    whole, small = loaded(folders[name]), loaded(folders[name], batch_tokens=100)
    np.testing.assert_allclose(small.encode_pairs(images, texts), whole.encode_pairs(images, texts), atol=1e-5)
    assert small.semantic() == whole.semantic()


def test_dim_takes_the_first_values(folders: dict[str, Path]) -> None:
    whole, part = loaded(folders["qwen3vl"], normalise=False), loaded(folders["qwen3vl"], dim=8, normalise=False)
    image = [picture(1)]
    np.testing.assert_array_equal(part.encode_images(image), whole.encode_images(image)[:, :8])
    assert part.dim("query") == 8
    with pytest.raises(ModelError, match=r"extractor\.dim = 64, but .* has 32 values"):
        loaded(folders["qwen3vl"], dim=64)


def test_a_special_token_in_a_text_is_letters(folders: dict[str, Path]) -> None:
    extractor = loaded(folders["qwen3vl"])
    texts = ["<|image_pad|> red <|im_end|>", "red"]
    ids = extractor.prepare_texts(texts)
    assert [(i == extractor.tokens.image_id).sum() for i in ids] == [1, 1]  # type: ignore[attr-defined]
    assert np.isfinite(extractor.encode_pairs([picture(0)] * 2, texts)).all()


def test_a_long_text_loses_its_own_end_and_is_counted(folders: dict[str, Path]) -> None:
    extractor: Any = loaded(folders["gme"], max_tokens=192)
    long = "word " * 60
    (ids,) = extractor.prepare_texts([long])
    assert len(ids) + extractor.tokens.room - 1 <= 192 and extractor.cut == 1
    tail = extractor.tokenizer.decode(ids[-14:])
    assert tail.endswith("<|im_start|>assistant\n<|endoftext|>") and extractor.tokens.take_truncated([long]) == {long}
    extractor.prepare_texts(["red"])
    assert extractor.cut == 1


def test_models_that_cannot_be_right_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has no chat template .*fetch the file"):
        loaded(save_qwen3vl(tmp_path / "bare", template=None))
    two = "{% for m in messages %}{% for c in m.content %}{{ '<|image_pad|>' * 2 }}{% endfor %}{% endfor %}"
    with pytest.raises(ModelError, match="chat template shows 6 images and 0 texts of 1 each"):
        loaded(save_qwen3vl(tmp_path / "twice", template=two))
    with pytest.raises(ModelError, match=r"chat template fails .*no system turn"):
        loaded(save_qwen3vl(tmp_path / "raises", template="{{ raise_exception('no system turn') }}"))
    with pytest.raises(ModelError, match=r"takes up to 1,800 of 1,850 tokens .*lower extractor\.max_pixels"):
        loaded(folders["qwen3vl"], max_pixels=1_843_200, max_tokens=1850)
    with pytest.raises(ModelError, match="no token '<emb_all>'"):
        loaded(folders["gme"], convention="procir")
    with pytest.raises(ModelError, match=r"min_pixels 8,192 above max_pixels 4,096"):
        loaded(folders["gme"], min_pixels=8192)
    other = save_qwen3vl(tmp_path / "other")
    about = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**about, "image_token_id": 3}))
    with pytest.raises(ModelError, match=r"<\|image_pad\|> is id \d+ of its tokenizer and id 3 of config\.json"):
        loaded(other)


def test_another_type_needs_its_convention_named(folders: dict[str, Path], tmp_path: Path) -> None:
    from pipeline.extraction.extractors._chat import format_of

    with pytest.raises(ModelError, match=r"type 'llava'.*extractor\.convention = 'qwen3vl' or 'gme' or 'procir'"):
        format_of("auto", "llava", {}, "m")
    folder = tmp_path / "later"
    save_qwen3vl(folder)
    about = json.loads((folder / "config.json").read_text())
    about |= {"model_type": "qwen9_vl", "architectures": ["Qwen9VLModel"], "transformers_version": "9.1.0"}
    (folder / "config.json").write_text(json.dumps(about))
    with pytest.raises(
        ModelError, match=r"type 'qwen9_vl' \(Qwen9VLModel\).*does not have, but was saved by version 9\.1\.0"
    ):
        loaded(folder, convention="qwen3vl")


def test_nan_in_lower_precision_on_a_cpu_stops_the_job(tmp_path: Path) -> None:
    folder = save_gme(tmp_path / "nan")
    weights = load_file(folder / "model.safetensors")
    name = next(n for n in weights if n.endswith("layers.1.mlp.down_proj.weight"))
    save_file(
        weights | {name: torch.full_like(weights[name], float("inf"))}, folder / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(ExtractorError, match=r"NaN or Inf in bfloat16 on a CPU: use --precision fp32"):
        loaded(folder, dtype="bfloat16").encode_images([picture(0)])


def test_an_adapter_for_another_model_is_refused(tmp_path: Path) -> None:
    folder = save_gme(tmp_path / "adapted")
    (folder / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": 2, "target_modules": ["no_such_layer"]})
    )
    save_file({"base_model.model.x.lora_A.weight": torch.zeros(2, 2)}, folder / "adapter_model.safetensors")
    with pytest.raises(ModelError, match="has an adapter in its folder"):
        loaded(folder)
