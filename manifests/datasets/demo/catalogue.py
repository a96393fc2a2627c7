"""Generate the demo's catalogue and sessions from one seed: the same seed gives the same ids, images and words."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from manifests.datasets.demo.attributes import CATEGORIES, NONE, Garment
from manifests.datasets.demo.phrases import NOUNS
from manifests.datasets.demo.sessions import DEMO, Kind, Story, fill_family
from manifests.datasets.demo.wording import feedback
from manifests.schema import Gallery, Session, Split, Turn


@dataclass(frozen=True)
class Size:
    """Size of a split: families per category, and sessions and garments per family."""

    families: int
    sessions: int
    garments: int

    def beyond(self, shipped: Size) -> bool:
        """Return whether the split has more families than the shipped demo; these are drawn in another way."""
        return self.families > shipped.families


TRAIN = Size(families=36, sessions=30, garments=20)
TEST = Size(families=18, sessions=9, garments=28)


@dataclass(frozen=True)
class Item:
    """Catalogue image that is not rendered yet."""

    id: str
    category: str
    split: Split
    garment: Garment

    @property
    def words(self) -> dict[str, tuple[str, ...]]:
        """Attribute words by field; fields that do not apply have none."""
        return {field: () if value == NONE else (value,) for field, value in self.garment.items()}


@dataclass(frozen=True)
class Catalogue:
    items: tuple[Item, ...]
    stories: dict[str, Story]  # session id -> its story
    sessions: tuple[Session, ...]
    galleries: tuple[Gallery, ...]


@lru_cache(maxsize=1)  # a report needs the catalogue again after the dataset is loaded
def build_catalogue(seed: int, train: Size = TRAIN, test: Size = TEST, kind: Kind = DEMO) -> Catalogue:
    """Build the catalogue. Train and test share no family, hence no image, session or (reference, target) pair.

    In a catalogue with more families than the demo's, or of another kind, families avoid each other's garments while
    they are drawn; in the demo's, a family that meets another one is drawn again, which takes quadratic time.
    """
    avoid = kind != DEMO or train.beyond(TRAIN) or test.beyond(TEST)
    items: list[Item] = []
    stories: dict[str, Story] = {}
    sessions: list[Session] = []
    galleries: list[Gallery] = []
    sizes: dict[Split, Size] = {"train": train, "test": test}
    for split, size in sizes.items():
        for category in CATEGORIES:
            rng = random.Random(f"demo sessions {seed} {split} {category}")
            found = _part(split, category, size, rng, _taken(items, category), kind, avoid)
            mine = [Item(f"{category}-{split}-{n:04d}", category, split, g) for n, g in enumerate(found.garments, 1)]
            items += mine
            galleries.append(Gallery(category=category, split=split, images=tuple(i.id for i in mine)))
            ids = {tuple(i.garment.values()): i.id for i in mine}
            for n, story in enumerate(found.stories, 1):
                name = f"{category}-{split}-session-{n:03d}"
                stories[name] = story
                sessions.append(_session(name, split, story, ids, rng))
    return Catalogue(tuple(items), stories, tuple(sessions), tuple(galleries))


def _taken(items: list[Item], category: str) -> set[tuple[str, ...]]:
    return {tuple(i.garment.values()) for i in items if i.category == category}


@dataclass(frozen=True)
class _Part:
    garments: list[Garment]
    stories: list[Story]


def _part(
    split: Split,
    category: str,
    size: Size,
    rng: random.Random,
    taken: set[tuple[str, ...]],
    kind: Kind,
    avoid: bool,
) -> _Part:
    """Return the families of one gallery, shuffled; a family that shares a garment with another one is redrawn, or,
    with ``avoid``, is drawn without such garments."""
    garments: list[Garment] = []
    stories: list[Story] = []
    used = set(taken)
    while len(stories) < size.families * size.sessions:
        family, told = fill_family(category, size.sessions, size.garments, rng, kind, used if avoid else frozenset())
        if used & family.known:
            continue
        used |= family.known
        garments += family.garments
        stories += told
    rng.shuffle(garments)
    rng.shuffle(stories)
    return _Part(garments, stories)


def _session(name: str, split: Split, story: Story, ids: dict[tuple[str, ...], str], rng: random.Random) -> Session:
    images = [ids[tuple(g.values())] for g in story.garments]
    return Session(
        id=name, category=story.category, split=split, turns=tuple(_turns(story, images, rng)), target=images[-1]
    )


def _turns(story: Story, images: list[str], rng: random.Random) -> Iterator[Turn]:
    for reference, image, asked in zip(story.garments, images, story.requests, strict=False):
        answer = {**reference, **asked}
        yield Turn(reference=image, captions=feedback(story.category, asked, answer, reference, rng))


def describe(item: Item) -> str:
    """Return a caption that names every value of a garment: "a dress, colour red, sleeve long sleeves, ..."."""
    noun = NOUNS[item.category]
    return ", ".join([f"a {noun}", *(f"{field} {value}" for field, value in item.garment.items() if value != NONE)])
