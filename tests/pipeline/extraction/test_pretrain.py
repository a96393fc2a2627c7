"""A small CLIP from nothing: learns, repeats, and leaves a folder that transformers and the clip extractor load."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModel, AutoTokenizer

from manifests.errors import FashionNTMError
from manifests.schema import Component, RunSpec
from pipeline.extraction import pretrain
from pipeline.extraction.extractors import load_extractor

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (30, 50, 220), "white": (240, 240, 240)}
TINY = pretrain.PretrainOptions(
    image_size=16,
    patch_size=8,
    vision_width=32,
    vision_layers=1,
    text_width=32,
    text_layers=1,
    projection=16,
    max_tokens=12,
    epochs=12,
    batch_size=16,
    learning_rate=3e-3,
    shift=1,
)


def pairs(count: int = 48) -> list[pretrain.Pair]:
    """Images of one colour, with two ways to name it."""
    rng = np.random.default_rng(0)
    made = []
    for n in range(count):
        name = list(COLOURS)[n % 4]
        noise = rng.integers(-12, 12, (16, 16, 3))
        pixels = np.clip(np.array(COLOURS[name]) + noise, 0, 255).astype(np.uint8)
        made.append(pretrain.Pair(Image.fromarray(pixels), (f"a {name} one", f"something {name}")))
    return made


def trained(options: pretrain.PretrainOptions = TINY):  # type: ignore[no-untyped-def]
    found = pairs()
    tokenizer = pretrain.build_tokenizer((t for p in found for t in p.texts), options.vocabulary, options.max_tokens)
    model = pretrain.build_model(tokenizer, options)
    return model, tokenizer, [m["loss"] for m in pretrain.fit(model, tokenizer, found, options)]


def test_it_learns_to_tell_colours_apart_and_its_folder_loads(tmp_path: Path) -> None:
    model, tokenizer, losses = trained()
    assert losses[-1] < losses[0]
    pretrain.save(model, tokenizer, TINY, tmp_path)

    assert type(AutoModel.from_pretrained(tmp_path)).__name__ == "CLIPModel"
    assert AutoTokenizer.from_pretrained(tmp_path)("a red one")["input_ids"]
    spec = RunSpec(
        name="t",
        dataset=Component(name="jsonl"),
        extractor=Component(name="clip", model=str(tmp_path), store_dtype="float32"),  # type: ignore[call-arg]
    )
    extractor = load_extractor(spec, "cpu")
    images = [Image.new("RGB", (16, 16), colour) for colour in COLOURS.values()]
    scores = extractor.encode_texts([f"a {name} one" for name in COLOURS]) @ extractor.encode_images(images).T
    assert (scores.argmax(1) == np.arange(4)).sum() >= 3  # chance: one of four

    pixels = torch.from_numpy(pretrain.to_pixels(images, TINY))
    with torch.no_grad():
        ours = pretrain.embed_images(AutoModel.from_pretrained(tmp_path, dtype=torch.float32).eval(), pixels, TINY)
    np.testing.assert_allclose(extractor.encode_images(images), ours.numpy(), atol=2e-3)  # one preprocessing


def test_the_same_seed_gives_the_same_weights() -> None:
    short = TINY.model_copy(update={"epochs": 1})
    one, two = trained(short)[0], trained(short)[0]
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_pairs_of_a_group_stay_together_and_each_comes_once() -> None:
    found = [pretrain.Pair(p.image, p.texts, str(n // 4)) for n, p in enumerate(pairs(24))]
    batches = list(pretrain.batches(found, 8, np.random.default_rng(0)))
    order = np.concatenate(batches)
    assert sorted(order) == list(range(24))
    groups = order // 4
    assert len([n for n in range(1, 24) if groups[n] != groups[n - 1]]) == 5


def test_one_pair_is_too_few() -> None:
    tokenizer = pretrain.build_tokenizer(["a red one"], TINY.vocabulary, TINY.max_tokens)
    with pytest.raises(FashionNTMError, match="at least two"):
        list(pretrain.fit(pretrain.build_model(tokenizer, TINY), tokenizer, pairs(1), TINY))
