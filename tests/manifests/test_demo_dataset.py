"""The embedded demo: the same every time, without contradictions, and such that early feedback matters at the end."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from manifests.datasets import datasets
from manifests.datasets.demo.attributes import CATEGORIES, FIELDS, NONE, problem, random_garment, step
from manifests.datasets.demo.catalogue import Catalogue, Size, build_catalogue
from manifests.datasets.demo.files import write_images
from manifests.datasets.demo.render import render
from manifests.datasets.demo.wording import feedback
from manifests.errors import ManifestError
from manifests.identity import digest
from manifests.schema import Dataset

SMALL = {"train_families": 2, "test_families": 1, "size": 32}


@pytest.fixture(scope="module")
def catalogue() -> Catalogue:
    return build_catalogue(0)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return load(tmp_path_factory.mktemp("data"))


def load(data: Path, **options: object) -> Dataset:
    source = datasets.get("demo")
    return source.load(source.Options(**{**SMALL, **options}), data)


def test_counts(catalogue: Catalogue) -> None:
    assert len(catalogue.items) >= 2000
    turns = {s: Counter(len(x.turns) for x in catalogue.sessions if x.split == s) for s in ("train", "test")}
    assert 3000 <= sum(turns["train"].values()) <= 3500 and 400 <= sum(turns["test"].values()) <= 500
    for split in turns:
        assert set(turns[split]) == {2, 3, 4} and min(turns[split].values()) > 50
    assert {(g.category, g.split) for g in catalogue.galleries} == {(c, s) for c in CATEGORIES for s in turns}


def test_the_same_seed_gives_the_same_sessions_and_another_seed_others() -> None:
    few = Size(2, 18, 20), Size(1, 9, 20)
    one, again, other = build_catalogue(0, *few), build_catalogue(0, *few), build_catalogue(1, *few)
    assert again.items == one.items and again.sessions == one.sessions
    assert other.sessions != one.sessions


def test_the_shipped_demo_is_unchanged(catalogue: Catalogue) -> None:
    content = digest([[i.id, i.garment] for i in catalogue.items] + [s.model_dump() for s in catalogue.sessions])
    assert content.startswith("8f041b0847949ccc")


def test_train_and_test_share_nothing(catalogue: Catalogue) -> None:
    def of(split: str) -> tuple[set, set, set]:
        sessions = [s for s in catalogue.sessions if s.split == split]
        items = {(i.category, *i.garment.values()) for i in catalogue.items if i.split == split}
        return {s.id for s in sessions}, {p for s in sessions for p in s.pairs}, items

    for train, test in zip(of("train"), of("test"), strict=True):
        assert train and test and not train & test


def test_no_garment_appears_twice(catalogue: Catalogue) -> None:
    seen = Counter((i.category, *i.garment.values()) for i in catalogue.items)
    assert max(seen.values()) == 1 and all(problem(i.garment) is None for i in catalogue.items)


def test_sessions_do_not_contradict_themselves_and_the_target_has_all_that_was_asked_for(catalogue: Catalogue) -> None:
    for story in catalogue.stories.values():
        asked = [field for turn in story.requests for field in turn]
        assert len(asked) == len(set(asked))
        target = story.garments[-1]
        assert all(target[field] == value for field, value in story.wanted.items())
        for reference, turn in zip(story.garments, story.requests, strict=False):
            assert all(reference[field] != value for field, value in turn.items())


def test_fields_nobody_mentioned_come_from_the_last_reference(catalogue: Catalogue) -> None:
    for story in catalogue.stories.values():
        last, target = story.garments[-2:]
        assert all(target[f] == last[f] for f in target if f not in story.wanted)


def test_an_intermediate_image_answers_the_request_but_for_one_of_two(catalogue: Catalogue) -> None:
    whole = 0
    steps = [(g, r) for s in catalogue.stories.values() for g, r in zip(s.garments[1:-1], s.requests, strict=False)]
    for garment, turn in steps:
        missed = [f for f, v in turn.items() if garment[f] != v]
        assert len(missed) <= (len(turn) == 2)
        whole += not missed
    assert whole > len(steps) / 2


def test_early_feedback_is_lost_and_fields_drift_in_most_sessions(catalogue: Catalogue) -> None:
    stories = list(catalogue.stories.values())
    assert sum(bool(s.lost) for s in stories) > 0.8 * len(stories)
    drifted = [{f for f in s.garments[0] if s.garments[0][f] != s.garments[-1][f]} - set(s.wanted) for s in stories]
    assert sum(map(bool, drifted)) > 0.6 * len(stories)


def test_the_attributes_alone_find_the_target_and_the_shortcuts_do_not(catalogue: Catalogue) -> None:
    """R@1 of the nearest garments by number of equal fields: what perfect recognition could reach."""
    galleries = {g.category: set(g.images) for g in catalogue.galleries if g.split == "test"}
    found: dict[str, list[bool]] = {"all turns": [], "last turn": [], "all captions": []}
    for session in (s for s in catalogue.sessions if s.split == "test"):
        story = catalogue.stories[session.id]
        names = list(FIELDS[session.category])
        items = [i for i in catalogue.items if i.id in galleries[session.category]]
        table = np.array([[i.garment[f] for f in names] for i in items])
        position = [i.id for i in items].index(session.target)
        guesses = (
            {**story.garments[-2], **story.wanted},
            {**story.garments[-2], **story.requests[-1]},
            {**story.garments[0], **story.wanted},
        )
        for method, guess in zip(found, guesses, strict=True):
            same = (table == np.array([guess[f] for f in names])).sum(1)
            found[method].append((same >= same[position]).sum() == 1)
    recall = {method: np.mean(hits) for method, hits in found.items()}
    assert recall["all turns"] == 1.0
    assert recall["last turn"] < 0.4 and recall["all captions"] < 0.6


def test_the_wording_varies_and_is_never_empty(catalogue: Catalogue) -> None:
    texts = [t.text for s in catalogue.sessions for t in s.turns]
    assert len(set(texts)) > 0.8 * len(texts)
    assert all(text.strip() and "{" not in text for text in texts)
    joined = " ".join(texts)
    for word in ("longer", "darker", "instead of", "no ", "without", "much "):
        assert word in joined


def test_a_comparison_leaves_one_answer() -> None:
    assert (
        step("dress", "length", "mini", "midi") == 2 and step("shirt", "sleeve", "long sleeves", "short sleeves") == -2
    )
    assert step("dress", "colour", "pink", "burgundy") == 2 and step("dress", "colour", "pink", "navy") == 0
    assert step("dress", "sleeve", "sleeveless", "long sleeves") == 0  # there is no sleeve to be longer than
    rng = random.Random(0)
    old = {**random_garment("dress", rng), "length": "mini"}
    far = {**old, "length": "maxi"}
    said = {c for _ in range(200) for c in feedback("dress", {"length": "maxi"}, far, old, rng)}
    assert all("much" in c for c in said if "longer" in c) and any("longer" in c for c in said)


def test_equal_garments_give_similar_but_not_equal_pixels() -> None:
    garment = random_garment("shirt", random.Random(3))
    first, again, second = (render("shirt", garment, 64, random.Random(n)) for n in (1, 1, 2))
    assert first.tobytes() == again.tobytes() != second.tobytes()


def test_every_value_can_be_drawn_and_said() -> None:
    rng = random.Random(0)
    for category in CATEGORIES:
        for field, values in FIELDS[category].items():
            for value in values:
                garment = next(g for g in (random_garment(category, rng) for _ in range(9999)) if g[field] == value)
                assert render(category, garment, 32, rng).size == (32, 32)
                assert feedback(category, {field: value}, garment, None, rng)[0]


def test_it_loads_with_images_on_disk(small: Dataset) -> None:
    assert small.images_root is not None
    for image in small.images.values():
        with Image.open(small.images_root / str(image.file)) as picture:
            assert picture.size == (32, 32) and picture.format == "JPEG"
    words = small.attributes[small.sessions[0].target]
    assert words["colour"] and NONE not in {w for value in words.values() for w in value}


def test_a_second_load_renders_nothing_and_another_size_renders_again(tmp_path: Path) -> None:
    first = load(tmp_path)
    root = first.images_root
    assert root is not None
    times = {p: p.stat().st_mtime_ns for p in root.rglob("*.jpg")}
    assert load(tmp_path).images == first.images
    assert {p: p.stat().st_mtime_ns for p in root.rglob("*.jpg")} == times
    load(tmp_path, size=40)
    assert Image.open(next(root.rglob("*.jpg"))).size == (40, 40)
    assert [p.name for p in tmp_path.iterdir()] == ["demo"]  # nothing half-made is left beside it


def test_a_missing_image_is_rendered_again_with_the_same_bytes(tmp_path: Path) -> None:
    root = load(tmp_path).images_root
    assert root is not None
    victim = sorted(root.rglob("*.jpg"))[0]
    data = victim.read_bytes()
    victim.unlink()
    load(tmp_path)
    assert victim.read_bytes() == data


def test_a_broken_stamp_or_a_foreign_folder_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "thesis.txt").write_text("years of work")
    with pytest.raises(ManifestError, match=r"demo\.json.*dataset\.folder"):
        load(tmp_path)
    assert (tmp_path / "demo" / "thesis.txt").read_text() == "years of work"


def test_an_interrupted_rendering_leaves_no_folder(tmp_path: Path) -> None:
    items = build_catalogue(0, Size(1, 2, 4), Size(1, 2, 4)).items
    broken = (*items[:3], items[3].__class__(items[3].id, "hat", items[3].split, items[3].garment))
    with pytest.raises(KeyError):
        write_images(broken, tmp_path / "demo", 0, 32)
    assert list(tmp_path.iterdir()) == []
    assert write_images(items, tmp_path / "demo", 0, 32)
    assert json.loads((tmp_path / "demo" / "demo.json").read_text())["images"] == len(items)


@pytest.mark.parametrize("folder", ["../elsewhere", "a/../../b"])
def test_a_folder_outside_the_data_is_refused(tmp_path: Path, folder: str) -> None:
    with pytest.raises(ManifestError, match=r"dataset\.folder"):
        load(tmp_path, folder=folder)
