"""Training of a small CLIP model from scratch on image-text pairs of any dataset.

The result is a standard local CLIP folder (``save_pretrained`` of transformers classes, a word tokenizer and the image
processor's settings), which the ``clip`` extractor loads. Intended for catalogs that no public model fits, and for the
demo, which needs a small model.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from pydantic import Field
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, PreTrainedTokenizerFast

from manifests.errors import FashionNTMError
from manifests.schema import Frozen
from pipeline.extraction import hub
from pipeline.extraction.tokens import pad_ids

# Ids 0..3; 2 is not the end token, because CLIPModel takes that id for "old CLIP".
PAD, BOS, UNK, EOS = "<pad>", "<start>", "<unk>", "<end>"
READ_SCALE = 10.0  # scales the entries of unit-norm embeddings to about one for the word reader
POSITION_STD = 0.3  # of the initial position embeddings; transformers' 0.02 is too small beside the patches


class PretrainOptions(Frozen):
    """Sizes of the two towers and training options. The defaults suit about ten thousand small images."""

    image_size: int = Field(64, ge=8)
    patch_size: int = Field(16, ge=4)
    vision_width: int = Field(128, ge=32, multiple_of=32)
    vision_layers: int = Field(3, ge=1)
    text_width: int = Field(96, ge=32, multiple_of=32)
    text_layers: int = Field(2, ge=1)
    projection: int = Field(128, ge=8)
    max_tokens: int = Field(96, ge=8)
    vocabulary: int = Field(20000, ge=8)
    epochs: int = Field(10, ge=1)
    batch_size: int = Field(64, ge=2)
    learning_rate: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0.05, ge=0)
    temperature: float = Field(0.07, gt=0)
    pixel_mean: float = Field(0.5, ge=0, le=1)  # of the vision tower's input; see ``pixel_statistics``
    pixel_std: float = Field(0.5, gt=0)
    shift: int = Field(1, ge=0)  # augmentation: maximum shift in pixels
    brightness: float = Field(0.05, ge=0, lt=1)
    words: float = Field(1.0, ge=0)  # weight of the word loss relative to the contrastive loss
    forget: float = Field(0.02, ge=0, lt=1)  # fraction of words replaced by the unknown word
    seed: int = 0


@dataclass(frozen=True)
class Pair:
    """An image with one or more matching texts; one text is sampled per epoch.

    Pairs of the same ``group`` are in the same batch, where similar images are hard negatives.
    """

    image: Image.Image | Path
    texts: tuple[str, ...]
    group: str | None = None


def build_tokenizer(texts: Iterable[str], size: int, max_tokens: int) -> PreTrainedTokenizerFast:
    """Return a lowercase tokenizer of the ``size`` - 4 most frequent words (ties in alphabetical order)."""
    counts = Counter(word for text in texts for word in re.findall(r"\w+|[^\w\s]+", text.lower()))
    words = sorted(counts, key=lambda w: (-counts[w], w))[: size - 4]
    vocabulary = {word: n for n, word in enumerate([PAD, BOS, UNK, EOS, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNK))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\w+|[^\w\s]+"), "removed", invert=True)
    ends = [(mark, vocabulary[mark]) for mark in (BOS, EOS)]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A {EOS}", special_tokens=ends)
    special = {"pad_token": PAD, "bos_token": BOS, "unk_token": UNK, "eos_token": EOS}
    sides = {"padding_side": "right", "truncation_side": "right"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=max_tokens, **sides, **special)


def build_model(tokenizer: PreTrainedTokenizerFast, options: PretrainOptions) -> CLIPModel:
    """Return a CLIPModel initialized from ``options.seed`` (as in transformers, except for the positions)."""

    def tower(width: int, layers: int) -> dict[str, int]:
        sizes = {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers}
        return {**sizes, "num_attention_heads": width // 32, "projection_dim": options.projection}

    text = {"vocab_size": len(tokenizer), "max_position_embeddings": options.max_tokens}
    text |= {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    text |= tower(options.text_width, options.text_layers)
    vision = {"image_size": options.image_size, "patch_size": options.patch_size}
    vision |= tower(options.vision_width, options.vision_layers)
    common = {"projection_dim": options.projection, "logit_scale_init_value": math.log(1 / options.temperature)}
    config = CLIPConfig(text_config=text, vision_config=vision, **common)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        model = CLIPModel(config)
        torch.nn.init.normal_(model.vision_model.embeddings.position_embedding.weight, std=POSITION_STD)
        return model


def build_processor(options: PretrainOptions) -> CLIPImageProcessorPil:
    """Return the image processor: shorter side to ``image_size``, center crop, values to (v - mean) / std."""
    size, mean, std = options.image_size, [options.pixel_mean] * 3, [options.pixel_std] * 3
    crop = {"height": size, "width": size}
    return CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size=crop, image_mean=mean, image_std=std)


def to_pixels(images: Iterable[Image.Image | Path], options: PretrainOptions) -> np.ndarray:
    """Return images as uint8 [n, 3, size, size], from the image processor that is saved with the model."""
    processor = build_processor(options)
    processor.do_rescale = processor.do_normalize = False  # keep uint8: a quarter of the memory
    rows = []
    for image in images:
        if isinstance(image, Path):
            with Image.open(image) as opened:
                image = opened.convert("RGB")
        rows.append(np.asarray(processor(images=[image], return_tensors="np")["pixel_values"][0]))
    return np.stack(rows).astype(np.uint8)


def pixel_statistics(pixels: np.ndarray) -> dict[str, float]:
    """Return ``pixel_mean`` and ``pixel_std`` of images [n, 3, s, s]; centered pixels halve the number of epochs."""
    part = pixels[:2000].astype(np.float32) / 255
    return {"pixel_mean": round(float(part.mean()), 4), "pixel_std": round(float(part.std()), 4)}


def options_of(folder: Path) -> PretrainOptions:
    """Return options with image size, text length and pixel statistics of the model in ``folder``, others default."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    settings = json.loads((folder / "preprocessor_config.json").read_text(encoding="utf-8"))
    size, length = config["vision_config"]["image_size"], config["text_config"]["max_position_embeddings"]
    mean, std = settings["image_mean"][0], settings["image_std"][0]
    return PretrainOptions(image_size=size, max_tokens=length, pixel_mean=mean, pixel_std=std)


def to_ids(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> list[np.ndarray]:
    """Return the token ids of each text, with start and end, truncated to the tokenizer's maximum length."""
    encoded = tokenizer(list(texts), truncation=True, padding=False)["input_ids"]
    return [np.array(row, dtype=np.int64) for row in encoded]


def padded(rows: Sequence[np.ndarray], pad: int) -> Tensor:
    """Pad to int64 [n, longest]."""
    return torch.from_numpy(pad_ids(rows, pad)[0])


def embed_images(model: CLIPModel, pixels: Tensor, options: PretrainOptions) -> Tensor:
    """Return unit-norm embeddings [n, projection] of pixel values 0..255 [n, 3, s, s]."""
    values = (pixels.float() / 255 - options.pixel_mean) / options.pixel_std
    hidden = model.vision_model(pixel_values=values).pooler_output
    return normalize(model.visual_projection(hidden), dim=-1)


def embed_texts(model: CLIPModel, ids: Tensor) -> Tensor:
    """Return unit-norm embeddings [n, projection] of int64 [n, L]; causal attention needs no padding mask."""
    return normalize(model.text_projection(model.text_model(input_ids=ids).pooler_output), dim=-1)


def word_targets(flat: Sequence[np.ndarray], starts: np.ndarray, vocabulary: int) -> Tensor:
    """Return the word-loss target of each pair: word frequencies over all its texts, with more weight on rare words.

    float32 [pairs, vocabulary]; rows sum to one (to zero for a pair without a known word).
    """
    counts = torch.zeros(len(starts) - 1, vocabulary)
    for row in range(len(counts)):
        ids = np.concatenate(flat[starts[row] : starts[row + 1]])
        counts[row] = torch.from_numpy(np.bincount(ids[ids > 3], minlength=vocabulary)).float()
    share = (counts > 0).float().mean(0)
    weighted = counts * -torch.log(share.clamp(1e-6, 1))
    return weighted / weighted.sum(1, keepdim=True).clamp_min(1e-12)


def fit(
    model: CLIPModel, tokenizer: PreTrainedTokenizerFast, pairs: Sequence[Pair], options: PretrainOptions
) -> Iterator[dict[str, float]]:
    """Train ``model`` in place; yield {"epoch", "loss"} after each epoch. Reproducible on one machine for a given seed.

    Raises FashionNTMError when there are fewer than two pairs, or the loss is not finite.
    """
    if len(pairs) < 2:
        raise FashionNTMError(f"{len(pairs)} image-text pairs: contrastive training needs at least two")
    pixels = torch.from_numpy(to_pixels((p.image for p in pairs), options))
    every = [t for p in pairs for t in sorted(p.texts, key=len)]
    flat = to_ids(tokenizer, every)
    number = {t: n for n, t in enumerate(dict.fromkeys(every))}
    content = np.array([number[t] for t in every])  # the same number for equal texts
    starts = np.cumsum([0, *(len(p.texts) for p in pairs)])
    rng = np.random.default_rng(options.seed)
    targets = word_targets(flat, starts, len(tokenizer))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        reader = torch.nn.Linear(options.projection, len(tokenizer))  # predicts words from embeddings; not saved
    both = torch.nn.ModuleList([model, reader])
    groups = [{"params": [p for p in both.parameters() if p.ndim >= 2], "weight_decay": options.weight_decay}]
    groups += [{"params": [p for p in both.parameters() if p.ndim < 2], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=options.learning_rate, betas=(0.9, 0.98))
    per_epoch = -(-len(pairs) // options.batch_size)
    total = options.epochs * per_epoch + 1
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, options.learning_rate, total_steps=total, pct_start=0.1)
    model.train()
    for epoch in range(1, options.epochs + 1):
        losses = []
        for batch in batches(pairs, options.batch_size, rng):
            place = rng.random()  # the same relative length in each pair's texts: little padding
            chosen = starts[batch] + (place * (starts[batch + 1] - starts[batch])).astype(np.int64)
            same = torch.from_numpy(content[chosen][:, None] == content[chosen][None, :])  # equal texts: all positives
            known = padded([flat[i] for i in chosen], tokenizer.pad_token_id)
            ids = forget(known, options.forget, tokenizer.unk_token_id, rng)
            images = embed_images(model, augment(pixels[batch], options, rng), options)
            words = embed_texts(model, ids)
            logits, wanted = model.logit_scale.exp() * images @ words.T, same.float() / same.sum(1, keepdim=True)
            loss = (cross_entropy(logits, wanted) + cross_entropy(logits.T, wanted)) / 2  # in-batch, in both directions
            if options.words:
                read = reader(READ_SCALE * torch.cat([images, words]))
                loss = loss + options.words * cross_entropy(read, targets[batch].repeat(2, 1))
            if not torch.isfinite(loss):
                raise FashionNTMError(f"loss is {loss.item()} in epoch {epoch}: lower learning_rate")
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            with torch.no_grad():
                model.logit_scale.clamp_(0, math.log(100))
            losses.append(loss.item())
        yield {"epoch": epoch, "loss": float(np.mean(losses))}
    model.eval()


def batches(pairs: Sequence[Pair], size: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Yield index arrays of at most ``size`` in random order, pairs of a group adjacent; each pair once."""
    members: dict[str, list[int]] = {}
    for i, pair in enumerate(pairs):
        members.setdefault(pair.group if pair.group is not None else f"\0{i}", []).append(i)
    groups = list(members.values())
    order = np.concatenate([rng.permutation(groups[g]) for g in rng.permutation(len(groups))]).astype(np.int64)
    count = -(-len(order) // size)
    yield from np.array_split(order, count)  # of nearly equal size, so that no batch has a single pair


def augment(pixels: Tensor, options: PretrainOptions, rng: np.random.Generator) -> Tensor:
    """Shift each image by up to ``shift`` pixels (edges repeated) and change its brightness. uint8 in, float out."""
    n, _, size, _ = pixels.shape
    x = pixels.float()
    if options.shift:
        x = torch.nn.functional.pad(x, (options.shift,) * 4, mode="replicate")
        across, down = torch.from_numpy(rng.integers(0, 2 * options.shift + 1, (2, n)))
        line = torch.arange(size)
        rows, columns = down[:, None] + line, across[:, None] + line
        image, channel = torch.arange(n)[:, None, None, None], torch.arange(3)[:, None, None]
        x = x[image, channel, rows[:, None, :, None], columns[:, None, None, :]]
    gain = 1 + options.brightness * rng.uniform(-1, 1, (n, 1, 1, 1))
    return (x * torch.from_numpy(gain).float()).clamp(0, 255)


def forget(ids: Tensor, share: float, unknown: int, rng: np.random.Generator) -> Tensor:
    """Replace a fraction of the words by the unknown word, so that its embedding is trained."""
    words = (ids > 3) & torch.from_numpy(rng.random(ids.shape) < share)
    return ids.masked_fill(words, unknown)


@torch.no_grad()
def retrieval(
    model: CLIPModel, tokenizer: PreTrainedTokenizerFast, pairs: Sequence[Pair], options: PretrainOptions
) -> dict[str, float]:
    """Return recall in percent for the pairs' first texts, in both directions; ties count against the model."""
    model.eval()
    pixels = torch.from_numpy(to_pixels((p.image for p in pairs), options))
    images = torch.cat([embed_images(model, part, options) for part in pixels.split(256)])
    rows = to_ids(tokenizer, [p.texts[0] for p in pairs])
    ids = padded(rows, tokenizer.pad_token_id)
    texts = torch.cat([embed_texts(model, part) for part in ids.split(256)])
    scores = texts @ images.T
    found: dict[str, float] = {}
    for name, table in (("text to image", scores), ("image to text", scores.T)):
        rank = (table >= table.diagonal()[:, None]).sum(1)
        found |= {f"{name} R@{k}": 100 * (rank <= k).float().mean().item() for k in (1, 5)}
    return found


def save(model: CLIPModel, tokenizer: PreTrainedTokenizerFast, options: PretrainOptions, out: Path) -> None:
    """Write a standard CLIP folder: float16 safetensors, config, tokenizer and image processor."""
    out.mkdir(parents=True, exist_ok=True)
    with hub.quiet():
        model.half().save_pretrained(out)
    model.float()
    tokenizer.save_pretrained(out)
    settings = json.loads(build_processor(options).to_json_string())
    settings["image_processor_type"] = "CLIPImageProcessor"  # known to all transformers versions
    (out / "preprocessor_config.json").write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")
