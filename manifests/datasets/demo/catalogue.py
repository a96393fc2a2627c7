"""Generate the demo's catalog and sessions from one seed: the same seed gives the same ids, images and words."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from manifests.datasets.demo.attributes import CATEGORIES, NONE, Garment
from manifests.datasets.demo.phrases import NOUNS
from manifests.datasets.demo.sessions import DEMO, VERSION, Kind, Story, fill_family
from manifests.datasets.demo.wording import feedback
from manifests.identity import digest
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
    """Catalog image that is not rendered yet."""

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
    """``grows``: identity of the catalogs that contain each other; "" for the demo's own."""

    items: tuple[Item, ...]
    stories: dict[str, Story]  # session id -> its story
    sessions: tuple[Session, ...]
    galleries: tuple[Gallery, ...]
    grows: str = ""


@lru_cache(maxsize=1)  # a report needs the catalog again after the dataset is loaded
def build_catalogue(
    seed: int, train: Size = TRAIN, test: Size = TEST, kind: Kind = DEMO, nested: bool = False
) -> Catalogue:
    """Build the catalog. Train and test share no family, hence no image, session or (reference, target) pair.

    ``nested`` (and every catalog with more families than the demo's, or of another kind): the test part is drawn first,
    each family from a seed of its own, and families avoid each other's garments. So a catalog of fewer train families
    has the same test part and the same first train families, and the time is linear in the families.
    """
    nested = nested or kind != DEMO or train.beyond(TRAIN) or test.beyond(TEST)
    items: list[Item] = []
    stories: dict[str, Story] = {}
    sessions: list[Session] = []
    galleries: list[Gallery] = []
    sizes: dict[Split, Size] = {"test": test, "train": train} if nested else {"train": train, "test": test}
    for split, size in sizes.items():
        for category in CATEGORIES:
            rng = random.Random(f"demo sessions {seed} {split} {category}")
            taken = {tuple(i.garment.values()) for i in items if i.category == category}
            found = (
                _nested_part(seed, split, category, size, taken, kind) if nested else _part(category, size, rng, taken)
            )
            mine = [Item(f"{category}-{split}-{n:04d}", category, split, g) for n, g in enumerate(found.garments, 1)]
            items += mine
            galleries.append(Gallery(category=category, split=split, images=tuple(i.id for i in mine)))
            ids = {tuple(i.garment.values()): i.id for i in mine}
            for n, story in enumerate(found.stories, 1):
                name = f"{category}-{split}-session-{n:03d}"
                stories[name] = story
                words = random.Random(f"demo words {seed} {name}") if nested else rng
                sessions.append(_session(name, split, story, ids, words))
    part = (train.sessions, train.garments, test.families, test.sessions, test.garments)
    grows = digest([VERSION, seed, kind.longest, kind.retract, *part]) if nested else ""
    return Catalogue(tuple(items), stories, tuple(sessions), tuple(galleries), grows)


@dataclass(frozen=True)
class _Part:
    garments: list[Garment]
    stories: list[Story]


def _part(category: str, size: Size, rng: random.Random, taken: set[tuple[str, ...]]) -> _Part:
    """Return the families of one gallery of the demo, shuffled; a family that shares a garment with another is redrawn."""
    garments: list[Garment] = []
    stories: list[Story] = []
    used = set(taken)
    while len(stories) < size.families * size.sessions:
        family, told = fill_family(category, size.sessions, size.garments, rng)
        if used & family.known:
            continue
        used |= family.known
        garments += family.garments
        stories += told
    rng.shuffle(garments)
    rng.shuffle(stories)
    return _Part(garments, stories)


def _nested_part(seed: int, split: Split, category: str, size: Size, taken: set[tuple[str, ...]], kind: Kind) -> _Part:
    """Return the families of one gallery in order, each drawn from its own seed without the garments of earlier ones."""
    part, used = _Part([], []), set(taken)
    for number in range(size.families):
        rng = random.Random(f"demo family {seed} {split} {category} {number}")
        family, told = fill_family(category, size.sessions, size.garments, rng, kind, used)
        used |= family.known
        part.garments.extend(family.garments)
        part.stories.extend(told)
    return part


def _session(name: str, split: Split, story: Story, ids: dict[tuple[str, ...], str], rng: random.Random) -> Session:
    images = [ids[tuple(g.values())] for g in story.garments]
    return Session(
        id=name, category=story.category, split=split, turns=tuple(_turns(story, images, rng)), target=images[-1]
    )


def _turns(story: Story, images: list[str], rng: random.Random) -> Iterator[Turn]:
    for reference, image, asked in zip(story.garments, images, story.requests, strict=False):
        answer = {**reference, **asked}
        yield Turn(reference=image, captions=feedback(story.category, asked, answer, reference, rng))


def reminded(session: Session, story: Story, seed: int) -> Session:
    """Return the session with a last turn that also asks for every earlier request that its image lacks."""
    reference, target = story.garments[-2:]
    asked = {**{field: story.wanted[field] for field in story.lost}, **story.requests[-1]}
    words = feedback(story.category, asked, target, reference, random.Random(f"demo reminder {seed} {session.id}"))
    last = session.turns[-1].model_copy(update={"captions": words})
    return session.model_copy(update={"turns": (*session.turns[:-1], last)})


def describe(item: Item) -> str:
    """Return a caption that names every value of a garment: "a dress, colour red, sleeve long sleeves, ..."."""
    noun = NOUNS[item.category]
    return ", ".join([f"a {noun}", *(f"{field} {value}" for field, value in item.garment.items() if value != NONE)])
