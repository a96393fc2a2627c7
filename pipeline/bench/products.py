"""End-to-end run on real photographs: train a small dual encoder on image-title pairs, extract, retrieve unseen products.

    python cli.py bench products --set data=DIR

DIR contains ``styles.csv`` (columns id and productDisplayName) and ``images/<id>.jpg``.
"""

from __future__ import annotations

import csv
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from cache import Store
from manifests.errors import FashionNTMError
from manifests.identity import stack_keys, text_key
from manifests.schema import Component, Dataset, Gallery, Image, RunSpec, Session, Turn
from pipeline.core.device import cpu_threads
from pipeline.evaluation.metrics import recall
from pipeline.evaluation.ranking import ranks
from pipeline.extraction import pretrain
from pipeline.extraction.extractors import load_extractor
from pipeline.extraction.run import extract

TITLE, ID = "productDisplayName", "id"


def run(
    data: str = "",
    pairs: int = 3000,
    held_out: int = 500,
    epochs: int = 30,
    image_size: int = 64,
    patch_size: int = 16,
    seed: int = 0,
) -> dict[str, Any]:
    """Return recall in percent over ``held_out`` unseen products, and the seconds of every step.

    Uses one thread, so that the same machine gives the same figures. Raises FashionNTMError if ``data`` has no products.
    """
    found = _products(data)[:pairs]
    if len(found) < 2 * held_out:
        needed = f"{2 * held_out} are needed for held_out={held_out}"
        raise FashionNTMError(f"{len(found)} products in {data or '.'}: {needed}")
    order = np.random.default_rng(seed).permutation(len(found))
    test, train = ([found[i] for i in part] for part in (order[:held_out], order[held_out:]))
    sizes = {"image_size": image_size, "patch_size": patch_size, "max_tokens": 32}
    size = pretrain.PretrainOptions(epochs=epochs, seed=seed, **sizes)
    with cpu_threads(1), tempfile.TemporaryDirectory() as folder:
        return _run(Path(data), train, test, Path(folder), size)


def _run(data: Path, train: list, test: list, folder: Path, size: pretrain.PretrainOptions) -> dict[str, Any]:
    began = time.perf_counter()
    pairs = [pretrain.Pair(data / "images" / f"{key}.jpg", (title,)) for key, title in train]
    statistics = pretrain.pixel_statistics(pretrain.to_pixels([p.image for p in pairs[:500]], size))
    size = size.model_copy(update=statistics)
    tokenizer = pretrain.build_tokenizer((title for _, title in train), size.vocabulary, size.max_tokens)
    model = pretrain.build_model(tokenizer, size)
    losses = [metrics["loss"] for metrics in pretrain.fit(model, tokenizer, pairs, size)]
    pretrain.save(model, tokenizer, size, folder / "model")
    trained = time.perf_counter()
    figures, report = _retrieve(data, test, folder)
    figures |= {"train_products": len(train), "held_out_products": len(test), "epochs": size.epochs}
    figures |= {"loss_first_epoch": losses[0], "loss_last_epoch": losses[-1], "chance_R@10": 100 * 10 / len(test)}
    return figures | {"train_s": trained - began, "extract_s": report.seconds["wall"]}


def _retrieve(data: Path, test: list, folder: Path) -> tuple[dict[str, float], Any]:
    """Extract the held-out images and titles into a store, and rank them in both directions from the store only."""
    turns = {key: (Turn(reference=key, captions=(title,)),) for key, title in test}
    sessions = tuple(Session(id=k, category="products", split="test", turns=t, target=k) for k, t in turns.items())
    images = {key: Image(id=key, file=f"{key}.jpg") for key in turns}
    parts: Any = {"sessions": sessions, "galleries": (Gallery(category="products", split="test", images=tuple(turns)),)}
    dataset = Dataset(name="products", images=images, images_root=data / "images", **parts)
    extractor = Component(name="clip", model=str(folder / "model"), store_dtype="float32")
    spec = RunSpec(name="products", dataset=Component(name="jsonl"), extractor=extractor)
    report = extract(dataset, load_extractor(spec, "cpu"), folder / "stores", progress="silent")
    store = Store.open(report.path)
    catalogue = store.catalogue()
    image = store.gather("image", store.find("image", stack_keys(catalogue[key] for key, _ in test)))
    text = store.gather("text", store.find("text", stack_keys(text_key(s.turns[0].text) for s in sessions)))
    right = np.arange(len(test))
    figures: dict[str, float] = {}
    for name, queries, candidates in (("image_to_title", image, text), ("title_to_image", text, image)):
        rank = ranks(queries.astype(np.float32), candidates.astype(np.float32), right)
        figures |= {f"{name}_R@{k}": recall(rank, k) for k in (1, 10)}
    return figures, report


def _products(data: str) -> list[tuple[str, str]]:
    """Return (id, title) of every product with an image, sorted by id."""
    file = Path(data) / "styles.csv"
    try:
        with open(file, encoding="utf-8", newline="") as handle:
            rows = [(row[ID], " ".join(row[TITLE].split())) for row in csv.DictReader(handle)]
    except (OSError, KeyError, TypeError, AttributeError) as error:
        raise FashionNTMError(
            f"{file} cannot be read ({' '.join(repr(error).split())[:120]}): give a folder with styles.csv (columns {ID} and "
            f"{TITLE}) and images/<id>.jpg, as in `bench products --set data=DIR`"
        ) from None
    return sorted((key, title) for key, title in rows if title and (Path(data) / "images" / f"{key}.jpg").is_file())


def render(figures: dict[str, Any]) -> str:
    f = figures
    lines = [
        f"{f['train_products']:,} image-title pairs, {f['epochs']} epochs on one thread: {f['train_s']:.0f} s, loss "
        f"{f['loss_first_epoch']:.2f} -> {f['loss_last_epoch']:.2f}; {f['held_out_products']:,} unseen products extracted "
        f"in {f['extract_s']:.1f} s",
        f"{'':16}{'R@1':>8}{'R@10':>8}{'chance R@10':>14}",
    ]
    for name in ("image_to_title", "title_to_image"):
        r1, r10 = f[f"{name}_R@1"], f[f"{name}_R@10"]
        lines.append(f"{name.replace('_', ' '):16}{r1:8.1f}{r10:8.1f}{f['chance_R@10']:14.1f}")
    return "\n".join(lines)
