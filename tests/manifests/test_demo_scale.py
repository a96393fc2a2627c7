"""The demo's generator beyond the shipped demo: more families, longer sessions, retractions, captions."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from manifests.datasets import datasets
from manifests.datasets.demo import catalogue_of
from manifests.datasets.demo.attributes import CATEGORIES, problem
from manifests.datasets.demo.catalogue import TRAIN, Size, build_catalogue
from manifests.datasets.demo.files import write_images
from manifests.datasets.demo.sessions import Kind


@pytest.mark.slow
def test_more_families_avoid_each_other() -> None:
    made = build_catalogue(0, Size(TRAIN.families + 4, 4, 8), Size(2, 3, 8))
    garments = Counter((i.category, *i.garment.values()) for i in made.items)
    assert max(garments.values()) == 1 and all(problem(i.garment) is None for i in made.items)
    assert sum(s.split == "train" for s in made.sessions) == 3 * 4 * (TRAIN.families + 4)
    train, test = ({p for s in made.sessions if s.split == split for p in s.pairs} for split in ("train", "test"))
    assert not train & test


def test_long_sessions_with_retractions() -> None:
    made = build_catalogue(0, Size(2, 18, 20), Size(1, 9, 20), Kind(longest=8, retract=0.4))
    lengths = Counter(len(s.turns) for s in made.sessions)
    assert max(lengths) == 8 and len(lengths) >= 5
    again = 0
    for story in made.stories.values():
        target = story.garments[-1]
        assert all(target[field] == value for field, value in story.wanted.items())
        asked = [field for turn in story.requests for field in turn]
        again += len(asked) > len(set(asked))
        for reference, turn in zip(story.garments, story.requests, strict=False):
            assert all(reference[field] != value for field, value in turn.items())
    assert again > len(made.stories) / 4
    assert sum(bool(s.lost) for s in made.stories.values()) > 0.7 * len(made.stories)


def test_sessions_of_ten_turns_are_drawn_for_every_category() -> None:
    made = build_catalogue(0, Size(1, 12, 20), Size(1, 4, 20), Kind(longest=10))
    lengths = {category: max(len(s.turns) for s in made.sessions if s.category == category) for category in CATEGORIES}
    assert min(lengths.values()) >= 9
    for story in made.stories.values():
        assert all(problem(g) is None for g in story.garments)
        assert all(story.garments[-1][field] == value for field, value in story.wanted.items())


def test_a_reminded_session_asks_for_what_was_lost(tmp_path: Path) -> None:
    source = datasets.get("demo")
    plain, told = (
        source.load(
            source.Options(train_families=1, test_families=1, nested=True, captions=True, reminded=on), tmp_path
        )
        for on in (False, True)
    )
    assert plain.split("train") == told.split("train") and plain.images == told.images
    stories = catalogue_of(source.Options(train_families=1, test_families=1, nested=True)).stories
    longer = 0
    for before, after in zip(plain.split("test"), told.split("test"), strict=True):
        assert before.turns[:-1] == after.turns[:-1] and before.target == after.target
        longer += bool(stories[before.id].lost) and len(after.turns[-1].text) > len(before.turns[-1].text)
    assert longer > len(plain.split("test")) / 2


@pytest.mark.parametrize("kind", [Kind(), Kind(longest=6, retract=0.2)])
def test_a_larger_nested_catalogue_contains_the_smaller(kind: Kind) -> None:
    small, large = (build_catalogue(0, Size(n, 4, 8), Size(2, 3, 8), kind, nested=True) for n in (2, 4))
    assert small.grows == large.grows
    assert {i.id: i.garment for i in small.items}.items() <= {i.id: i.garment for i in large.items}.items()
    sessions = {s.id: s for s in large.sessions}
    assert all(sessions[s.id] == s for s in small.sessions)
    tests = ([s for s in made.sessions if s.split == "test"] for made in (small, large))
    assert next(tests) == next(tests)
    garments = Counter((i.category, *i.garment.values()) for i in large.items)
    assert max(garments.values()) == 1
    assert build_catalogue(0, Size(2, 4, 8), Size(2, 3, 8), kind, nested=True) == small


def test_a_larger_catalogue_renders_only_what_is_missing(tmp_path: Path) -> None:
    small, large = (build_catalogue(0, Size(n, 2, 4), Size(1, 2, 4), nested=True) for n in (1, 2))
    folder = tmp_path / "demo"
    assert write_images(small.items, folder, 0, 32, small.grows)
    before = {p.name: p.stat().st_mtime_ns for p in (folder / "images").iterdir()}
    assert write_images(large.items, folder, 0, 32, large.grows)
    after = {p.name: p.stat().st_mtime_ns for p in (folder / "images").iterdir()}
    assert before.items() <= after.items() and len(after) == len(large.items)
    assert not write_images(small.items, folder, 0, 32, small.grows)
    lost = folder / "images" / f"{large.items[-1].id}.jpg"
    pixels = lost.read_bytes()
    lost.unlink()
    assert write_images(large.items, folder, 0, 32, large.grows) and lost.read_bytes() == pixels
    assert not list(tmp_path.glob(".demo-*"))


def test_captions_need_no_rendering(tmp_path: Path) -> None:
    source = datasets.get("demo")
    options = source.Options(train_families=1, test_families=1, captions=True)
    dataset = source.load(options, tmp_path)
    assert list(tmp_path.iterdir()) == [] and dataset.images_root is None
    captions = [image.caption for image in dataset.images.values()]
    assert all(captions) and len(set(captions)) == len(captions)
