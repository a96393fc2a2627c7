"""Inputs of `bench extract`: drawn JPEGs or a user's folder, and a small CLIP with random weights."""

from __future__ import annotations

import random
import shutil
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image as Pillow

from manifests.schema import Dataset, Gallery, Image

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


def draw_images(folder: Path, count: int, size: tuple[int, int] = (300, 400)) -> None:
    """Write ``count`` JPEGs of smooth colors with some noise, about 20 kB each, like catalog photographs."""
    folder.mkdir(parents=True, exist_ok=True)
    for n in range(count):
        rng = np.random.default_rng(n)
        small = Pillow.fromarray(rng.integers(0, 256, (6, 5, 3), dtype=np.uint8))
        pixels = np.asarray(small.resize(size, Pillow.Resampling.BICUBIC), dtype=np.int16)
        noisy = (pixels + rng.integers(-6, 7, pixels.shape)).clip(0, 255).astype(np.uint8)
        Pillow.fromarray(noisy).save(folder / f"{n:06}.jpg", quality=85)


def save_small_clip(folder: Path, width: int, layers: int, patch: int = 32) -> Path:
    """Save a random CLIP with a ViT of ``width``, ``layers`` and ``patch`` at 224 pixels: a scaled cost of a real one."""
    import torch
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel

    from pipeline.extraction.pretrain import build_tokenizer

    tokenizer = build_tokenizer(["red blue green dress shirt longer shorter more less"], 20_000, 32)
    tower = {"hidden_size": width, "intermediate_size": 4 * width, "num_attention_heads": width // 64}
    text = {"num_hidden_layers": 2, "vocab_size": len(tokenizer), "max_position_embeddings": 32}
    config = CLIPConfig(
        text_config={**tower, **text, "bos_token_id": 1, "eos_token_id": 3, "pad_token_id": 0},
        vision_config={**tower, "num_hidden_layers": layers, "image_size": 224, "patch_size": patch},
        projection_dim=width,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        CLIPModel(config).save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": 224}, crop_size={"height": 224, "width": 224}).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def dataset_of(root: Path, count: int) -> Dataset:
    """Return the images under ``root``, up to ``count``, as a dataset without sessions."""
    files = sorted(p for p in root.rglob("*") if p.suffix.lower() in SUFFIXES)[:count]
    images = {p.stem: Image(id=p.stem, file=p.relative_to(root).as_posix()) for p in files}
    gallery = Gallery(category="all", split="train", images=tuple(images))
    return Dataset(name="bench", images=images, sessions=(), galleries=(gallery,), images_root=root)


@contextmanager
def corrupted(source: Path, target: Path, count: int, share: float) -> Iterator[set[str]]:
    """Copy the first ``count`` images, corrupt ``share`` of them in the ways of SPOILT, yield the names; delete at exit."""
    shutil.rmtree(target, ignore_errors=True)
    files = sorted(p for p in source.rglob("*") if p.suffix.lower() in SUFFIXES)[:count]
    bad = set(random.Random(0).sample([p.stem for p in files], max(1, round(len(files) * share))))
    spoilt = 0
    for path in files:
        copy = target / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        data = path.read_bytes()
        if path.stem in bad:
            data = SPOILT[spoilt % len(SPOILT)](data, path.stem.encode())
            spoilt += 1
        copy.write_bytes(data)
    try:
        yield bad
    finally:
        shutil.rmtree(target, ignore_errors=True)


def _bomb(mark: bytes) -> bytes:
    """Return a PNG of a few bytes that declares 900 million pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    size = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"tEXt", b"Comment\0" + mark) + chunk(b"IEND", b"")


# Each has its own mark, because files with equal bytes are one item under two names. Only empty files are equal.
SPOILT: tuple[Callable[[bytes, bytes], bytes], ...] = (
    lambda data, mark: data[: len(data) // 2] + mark,  # truncated to half
    lambda data, mark: b"",
    lambda data, mark: b"<html>this is no image</html>" + mark,
    lambda data, mark: bytes(len(data)) + mark,  # zeros, as a full disk leaves them
    lambda data, mark: _bomb(mark),
    lambda data, mark: data[:20] + mark,  # only the header of a JPEG
)
