"""The demo's generator beyond the shipped demo: more families, longer sessions, retractions, captions."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from manifests.datasets import datasets
from manifests.datasets.demo.attributes import problem
from manifests.datasets.demo.catalogue import TRAIN, Size, build_catalogue
from manifests.datasets.demo.sessions import Kind


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


def test_captions_need_no_rendering(tmp_path: Path) -> None:
    source = datasets.get("demo")
    options = source.Options(train_families=1, test_families=1, captions=True)
    dataset = source.load(options, tmp_path)
    assert list(tmp_path.iterdir()) == [] and dataset.images_root is None
    captions = [image.caption for image in dataset.images.values()]
    assert all(captions) and len(set(captions)) == len(captions)
