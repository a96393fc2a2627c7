"""Build the demo's single-turn model from scratch: a small CLIP, its composer, their score and the model card."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPModel

from pipeline.composition.checkpoint import load_composer, save_composer
from pipeline.composition.composers.gated import Gated, GatedOptions
from pipeline.composition.fit import Embeddings, FitOptions, fit_on_rows
from pipeline.core.device import cpu_threads
from pipeline.demo.examples import Example, examples, full_description, triplets
from pipeline.extraction import pretrain
from pipeline.training.determinism import flushed_denormals

SHIPPED = Path(__file__).parent / "model"
COMPOSER, CARD, SCORE = "composer", "README.md", "score.json"
PIXELS = 96  # images are rendered as in the dataset
# ``pretrain.pixel_statistics`` of these images
TOWERS = pretrain.PretrainOptions(epochs=8, pixel_mean=0.79, pixel_std=0.21)
HEAD = GatedOptions(hidden=512, dropout=0.1)
FIT = FitOptions(epochs=12, batch_size=512, learning_rate=1e-3, scale=30.0)
TRAIN_EXAMPLES, TEST_EXAMPLES = 12_000, 600
Log = Callable[[str], None]


@cpu_threads(1)
@flushed_denormals()
def build(
    out: Path, log: Log = lambda _: None, count: int = TRAIN_EXAMPLES, towers: pretrain.PretrainOptions = TOWERS
) -> dict[str, float]:
    """Train towers and composer on new garments, save them to ``out`` with a card, and return the score.

    Runs on one CPU thread, so that the same machine gives the same weights. ``count`` and ``towers`` are for tests.
    """
    log(f"rendering {count:,} garments")
    found = examples(count, PIXELS, "train")
    pairs = [pretrain.Pair(e.image, e.texts, str(e.group)) for e in found]
    tokenizer = pretrain.build_tokenizer((t for p in pairs for t in p.texts), towers.vocabulary, towers.max_tokens)
    model = pretrain.build_model(tokenizer, towers)
    for metrics in pretrain.fit(model, tokenizer, pairs, towers):
        log(f"towers, epoch {metrics['epoch']} of {towers.epochs}: loss {metrics['loss']:.3f}")
    pretrain.save(model, tokenizer, towers, out)
    model = _load(out)  # in the shipped precision
    rows, reference, text, target, group = _rows(model, tokenizer, towers, found, "train")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(FIT.seed)
        composer = Gated(HEAD, towers.projection, towers.projection)
    for metrics in fit_on_rows(composer, rows, reference, text, target, FIT, group):
        log(f"composer, epoch {metrics['epoch']} of {FIT.epochs}: loss {metrics['loss']:.3f}")
    save_composer(out / COMPOSER, composer, {"fit": FIT.model_dump()})
    found_score = score(out)
    (out / SCORE).write_text(json.dumps(found_score, indent=2) + "\n", encoding="utf-8")
    (out / CARD).write_text(_card(out, found_score), encoding="utf-8")
    return found_score


@torch.no_grad()
def score(folder: Path, count: int = TEST_EXAMPLES) -> dict[str, float]:
    """Return recall in percent on unseen garments: descriptions to images, and feedback to targets.

    The 600 candidates are groups of six look-alikes. Ties count against the model.
    """
    from transformers import PreTrainedTokenizerFast

    model, tokenizer = _load(folder), PreTrainedTokenizerFast.from_pretrained(folder)
    towers = pretrain.options_of(folder)
    found, rng = examples(count, PIXELS, "score"), random.Random("score")
    pairs = [pretrain.Pair(e.image, (full_description(e.category, e.garment, rng),)) for e in found]
    result = pretrain.retrieval(model, tokenizer, pairs, towers)
    composer, _ = load_composer(folder / COMPOSER)
    rows, reference, text, target, _ = _rows(model, tokenizer, towers, found, "score")
    scores = composer.query(rows.image[reference], rows.text[text]) @ composer.target(rows.image).T
    rank = (scores >= scores.gather(1, target[:, None])).sum(1)
    return result | {f"feedback to target R@{k}": 100 * (rank <= k).float().mean().item() for k in (1, 5)}


def shipped_score() -> dict[str, float]:
    return json.loads((SHIPPED / SCORE).read_text(encoding="utf-8"))


def _load(folder: Path) -> CLIPModel:
    return CLIPModel.from_pretrained(folder, dtype=torch.float32).eval()


@torch.no_grad()
def _rows(
    model: CLIPModel, tokenizer: Any, towers: pretrain.PretrainOptions, found: list[Example], seed: str
) -> tuple[Embeddings, Tensor, Tensor, Tensor, Tensor]:
    """Return embeddings of the examples and of their feedback texts, and the triplets and groups as row numbers."""
    made = triplets(found, seed)
    texts = sorted({text for _, text, _ in made}, key=len)
    number = {text: n for n, text in enumerate(texts)}
    pixels = torch.from_numpy(pretrain.to_pixels((e.image for e in found), towers))
    ids = pretrain.to_ids(tokenizer, texts)
    parts = (pretrain.padded(ids[n : n + 128], tokenizer.pad_token_id) for n in range(0, len(ids), 128))
    rows = Embeddings(
        torch.cat([pretrain.embed_images(model, part, towers) for part in pixels.split(128)]),
        torch.cat([pretrain.embed_texts(model, part) for part in parts]),
    )
    reference, text, target = (torch.tensor(c) for c in zip(*((a, number[t], b) for a, t, b in made), strict=True))
    return rows, reference, text, target, torch.tensor([e.group for e in found])[reference]


def _card(folder: Path, scores: dict[str, float]) -> str:
    size = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) / 1e6
    lines = "\n".join(f"| {name} | {value:.1f} |" for name, value in scores.items())
    return f"""# The demo's single-turn model

A CLIP-architecture dual encoder ({TOWERS.vision_layers} vision layers of {TOWERS.vision_width}, {TOWERS.text_layers} text
layers of {TOWERS.text_width}, projection {TOWERS.projection}; float16 safetensors) and a trained composer, {size:.1f} MB in
all. It knows the rendered garments of the embedded demo and nothing else.

- Trained from nothing on {TRAIN_EXAMPLES:,} freshly rendered garments with generated descriptions and feedback; no image
  and no session of the demo dataset is among them. No third-party data, no pretrained weights.
- Licence: Apache-2.0, as the project.
- Rebuild: `python cli.py demo --rebuild-model` trains it again from nothing and prints its score beside this one.

| on {TEST_EXAMPLES} held-out garments, in groups of six look-alikes | percent |
|---|---|
{lines}
"""
