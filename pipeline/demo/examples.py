"""Training examples of the demo's single-turn model: look-alike garments with texts, from a seed of their own."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from PIL import Image

from manifests.datasets.demo.attributes import ACCENTS, CATEGORIES, NONE, Garment, needs_accent, problem, random_garment
from manifests.datasets.demo.render import render
from manifests.datasets.demo.wording import feedback, sentence
from manifests.schema import Turn

GROUP = 6  # look-alikes: each is made from another of its group by changing one to three fields; two may be equal
TEXTS = 8  # descriptions per image
CHANGES = 3  # most fields per feedback
TARGETS = 3  # targets per reference


@dataclass(frozen=True)
class Example:
    """A rendered garment with matching texts, from one word to all of its attributes."""

    category: str
    garment: Garment
    image: Image.Image
    texts: tuple[str, ...]
    group: int


def examples(count: int, size: int, seed: str) -> list[Example]:
    """Return ``count`` examples (rounded down to whole groups) with images of ``size`` pixels; fixed by the seed."""
    rng = random.Random(seed)
    return [example for number in range(count // GROUP) for example in _group(number, size, rng)]


def _group(number: int, pixels: int, rng: random.Random) -> Iterator[Example]:
    category = rng.choice(CATEGORIES)
    garments = [random_garment(category, rng)]
    while len(garments) < GROUP:
        garments.append(_look_alike(category, rng.choice(garments), rng))
    for garment in garments:
        texts = tuple(_description(category, garment, rng) for _ in range(TEXTS))
        yield Example(category, garment, render(category, garment, pixels, rng), texts, number)


def _look_alike(category: str, garment: Garment, rng: random.Random) -> Garment:
    """Return another drawable garment that differs in one to three fields."""
    while True:
        other, changed = random_garment(category, rng), dict(garment)
        for field in rng.sample(list(garment), rng.randint(1, 3)):
            changed[field] = other[field]
        if not needs_accent(changed):
            changed["accent"] = NONE
        elif changed["accent"] == NONE:
            changed["accent"] = rng.choice(ACCENTS)
        if changed != garment and problem(changed) is None:
            return changed


def full_description(category: str, garment: Garment, rng: random.Random) -> str:
    fields = list(garment)
    rng.shuffle(fields)
    return sentence(category, fields, garment, garment, None, rng)


def _description(category: str, garment: Garment, rng: random.Random) -> str:
    """Return all attributes half of the time, else some of them worded as feedback, in one or more sentences."""
    if rng.random() < 0.5:
        return full_description(category, garment, rng)
    reference, fields, parts = random_garment(category, rng), list(garment), rng.choice([1, 1, 1, 1, 2, 3])
    rng.shuffle(fields)
    said = []
    for _ in range(parts):
        size = rng.choice([1, 2, 2, 3]) if parts == 1 else rng.choice([1, 2])
        part, fields = fields[:size], fields[size:]
        if part:
            said.append(sentence(category, part, {f: garment[f] for f in part}, garment, reference, rng))
    return ". ".join(said)


def triplets(found: list[Example], seed: str) -> list[tuple[int, str, int]]:
    """Return (reference number, feedback text, target number) within groups; the feedback names all differences."""
    rng = random.Random(seed)
    members: dict[int, list[int]] = {}
    for number, example in enumerate(found):
        members.setdefault(example.group, []).append(number)
    made = []
    for numbers in members.values():
        for reference in numbers:
            for target in rng.sample(numbers, min(TARGETS, len(numbers))):
                old, new = found[reference].garment, found[target].garment
                wanted = {field: value for field, value in new.items() if old[field] != value}
                if 0 < len(wanted) <= CHANGES:
                    captions = feedback(found[target].category, wanted, new, old, rng)
                    made.append((reference, Turn(reference="-", captions=captions).text, target))
    return made
