"""A tiny world for tests, in which a composer can be learned: an image is a colour and a shape, feedback asks for a colour."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cache import Store, StoreWriter
from manifests.identity import caption_key, stack_keys, text_key
from manifests.schema import Dataset, Gallery, Image, Session, Turn

COLOUR_WORDS = ("red", "blue", "green", "black", "floral", "plain")
SHAPE_WORDS = ("dress", "shirt", "top", "sleeve", "collar")
COLOURS, SHAPES, DIM = len(COLOUR_WORDS), len(SHAPE_WORDS), 24


def world(categories: tuple[str, ...] = ("dress", "shirt")) -> Dataset:
    """Two-turn sessions over COLOURS x SHAPES images a category: keep the shape, take the colour asked for."""
    images, sessions, galleries = {}, [], []
    for category in categories:
        names = [f"{category}/{c}-{s}" for c in range(COLOURS) for s in range(SHAPES)]
        images |= {n: Image(id=n, caption=caption(n)) for n in names}
        galleries += [Gallery(category=category, split=split, images=tuple(names)) for split in ("train", "test")]
        for number, (first, second, third) in enumerate(np.random.default_rng(0).integers(0, COLOURS, (60, 3))):
            shape = number % SHAPES
            turns = (
                Turn(reference=f"{category}/{first}-{shape}", captions=(f"more {COLOUR_WORDS[second]}",)),
                Turn(reference=f"{category}/{second}-{shape}", captions=(f"more {COLOUR_WORDS[third]}",)),
            )
            split = "train" if number < 45 else "test"
            target = f"{category}/{third}-{shape}"
            sessions.append(
                Session(id=f"{category}{number}", category=category, split=split, turns=turns, target=target)
            )
    return Dataset(name="world", images=images, sessions=tuple(sessions), galleries=tuple(galleries))


def caption(image: str) -> str:
    """``dress/1-2`` in words; the category keeps captions of two categories apart."""
    category, _, numbers = image.partition("/")
    colour, shape = (int(n) for n in numbers.split("-"))
    return f"a {COLOUR_WORDS[colour]} {SHAPE_WORDS[shape]} with {category}"


def features(dataset: Dataset) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Embeddings of images (colour + shape) and texts (colour, in a rotated space), by id and by text."""
    rng = np.random.default_rng(1)
    colour, shape = rng.normal(size=(COLOURS, DIM)), rng.normal(size=(SHAPES, DIM))
    asked = rng.normal(size=(COLOURS, DIM))

    def image(name: str) -> np.ndarray:
        c, s = (int(v) for v in name.split("/")[1].split("-"))
        return colour[c] + shape[s]

    texts = {text for _, text in dataset.queries()}
    return (
        {name: image(name) for name in dataset.images},
        {text: asked[COLOUR_WORDS.index(text.rsplit(" ", 1)[1])] for text in texts},
    )


def write_backbone(path: Path, dataset: Dataset, leave_out: tuple[str, ...] = ()) -> Store:
    """A backbone store with the image and text rows of ``dataset``; images in ``leave_out`` have failed."""
    images, texts = features(dataset)
    images = {name: row for name, row in images.items() if name not in leave_out}
    with StoreWriter(path, dataset="world", extractor="tiny", fields={"weights": "w"}, execution={}) as writer:
        for name in leave_out:
            writer.fail("image", name, "decode", "truncated")
        writer.bind({name: caption_key(name) for name in images})
        for table, keys, rows in (
            ("image", [caption_key(n) for n in images], images),
            ("text", [text_key(t) for t in texts], texts),
        ):
            writer.commit(table, stack_keys(keys), np.stack(list(rows.values())).astype(np.float32))
    return Store.open(path)
