"""ChatIR: the published split of the real dialogues, the two tasks, and damaged files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as Picture

from manifests.datasets import datasets
from manifests.errors import ManifestError
from manifests.leaks import overlaps
from manifests.protocols import sessions_digest
from manifests.schema import NO_IMAGE, Dataset

SOURCE = datasets.get("chatir")


def load(data: Path, **options: Any) -> Dataset:
    return SOURCE.load(SOURCE.Options(**options), data)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    (tmp_path / "chatir").mkdir()
    dialogues = [{"img": f"a/{n}.jpg", "dialog": [f"caption {n}", f"red? {n}", f"big? {n}"]} for n in range(4)]
    (tmp_path / "chatir/VisDial_v1.0_queries_val.json").write_text(json.dumps(dialogues))
    for name in ("0", "1", "2", "other"):
        path = tmp_path / f"coco/a/{name}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Picture.new("RGB", (4, 4)).save(path)
    (tmp_path / "space.json").write_text('["a/1.jpg", "a/other.jpg"]')
    return tmp_path


def test_published_split(shared_data: Path) -> None:
    dataset = load(shared_data)
    assert (dataset.turn_counts("train"), dataset.turn_counts("test")) == ({10: 1500}, {10: 564})
    assert sessions_digest(dataset.sessions)[:16] == "402e83e16199ae33"
    assert (dataset.gallery_images("train"), dataset.gallery_images("test")) == (1500, 2064)
    assert dataset.text_only and dataset.turn_targets == ("final",)
    spoken = {turn.text for session in dataset.sessions for turn in session.turns}
    assert not spoken & {image.caption for image in dataset.images.values()}  # a caption is never a turn
    shared = {name for found in overlaps(dataset).values() for name in found}
    assert shared <= {"last query", "last caption", "any caption"}


def test_facts_to_caption(small: Path) -> None:
    dataset = load(small, train=3)
    session = dataset.sessions[1]
    assert [turn.text for turn in session.turns] == ["red? 1", "big? 1"]
    assert {turn.reference for turn in session.turns} == {NO_IMAGE}
    assert session.targets == ("a/1.jpg", "a/1.jpg")
    assert dataset.images["a/1.jpg"].caption == "caption 1"
    assert [len(dataset.split(split)) for split in ("train", "test")] == [3, 1]


def test_images_with_the_search_space(small: Path) -> None:
    dataset = load(small, images="coco", search_space="space.json", train=0)
    assert [turn.text for turn in dataset.sessions[0].turns] == ["caption 0", "red? 0", "big? 0"]
    assert dataset.gallery("coco", "test").images == ("a/0.jpg", "a/1.jpg", "a/2.jpg", "a/3.jpg", "a/other.jpg")
    assert dataset.images["a/0.jpg"].file == "a/0.jpg" and dataset.images["a/0.jpg"].caption is None
    assert any(note.startswith("1 of 5 images have no file in coco/ (first: a/3.jpg)") for note in dataset.notes)


def test_every_problem_is_reported(small: Path) -> None:
    path = small / "chatir/VisDial_v1.0_queries_val.json"
    good = {"img": "a", "dialog": ["c", "r", "s"]}
    path.write_text(
        json.dumps([good, {"img": "", "dialog": ["c", "r", "s"]}, {"img": "b", "dialog": ["c", " ", 3]}, good])
    )
    with pytest.raises(ManifestError) as caught:
        load(small)
    places = [problem.place for problem in caught.value.problems]
    assert places == [
        "dialogue 1, key img",
        "dialogue 2, key dialog.1",
        "dialogue 2, key dialog.2",
        "dialogue 3, key img",
    ]
    path.write_text("[]")
    with pytest.raises(ManifestError, match="holds no dialogue"):
        load(small)
    with pytest.raises(ManifestError, match=r"key dataset\.search_space"):
        load(small, search_space="space.json")
