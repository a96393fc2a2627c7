"""CIRCLED: files in the layout of its card and converter, galleries, and damaged sessions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from manifests.datasets import datasets
from manifests.errors import ManifestError
from manifests.schema import Dataset

SOURCE = datasets.get("circled")
SUBSETS = ("fashioniq_dress_train", "fashioniq_dress_val", "cirr_val")


def session(subset: str, number: int, turns: int, truths: int = 1) -> dict[str, Any]:
    return {
        "session_id": f"{subset}_{number:04d}",
        "subset": subset,
        "ground_truth_ids": [f"{subset}-truth-{number}-{n}" for n in range(truths)],
        "num_turns": turns,
        "turns": [
            {"turn": n, "reference_image_id": f"{subset}-{number}-{n}", "relative_caption": f"make it {n}"}
            for n in range(1, turns + 1)
        ],
    }


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "circled/data").mkdir(parents=True)
    for number, subset in enumerate(SUBSETS):
        folder = tmp_path / "circled" / ("data" if number else "")
        sessions = [session(subset, n, n + 2, truths=1 + (subset == "cirr_val")) for n in range(5)]
        (folder / f"{subset}.json").write_text(json.dumps(sessions, indent=2))
    return tmp_path


def load(data: Path, **options: Any) -> Dataset:
    return SOURCE.load(SOURCE.Options(**({"subsets": SUBSETS} | options)), data)


def test_sessions_of_two_to_six_turns(data: Path) -> None:
    dataset = load(data)
    assert dataset.turn_counts("train") == {2: 1, 3: 1, 4: 1, 5: 1, 6: 1}
    assert dataset.categories == ("dress", "cirr")
    first = dataset.sessions[0]
    assert (first.id, first.split, first.category) == ("fashioniq_dress_train_0000", "train", "dress")
    assert [t.reference for t in first.turns] == ["fashioniq_dress_train-0-1", "fashioniq_dress_train-0-2"]
    assert first.target == "fashioniq_dress_train-truth-0-0"
    assert dataset.turn_targets == ("final",)
    assert first.pairs == tuple((t.reference, first.target) for t in first.turns)
    assert any(s.also for s in dataset.sessions) and len(first.correct) == 1 + len(first.also)
    assert any("several ground truths (the first is the target, mAP@K counts all): 5" in note for note in dataset.notes)
    assert any(note.startswith("gallery of dress/test: the 25 images of its sessions") for note in dataset.notes)


def test_galleries_and_captions_of_the_original_splits(data: Path) -> None:
    (data / "splits").mkdir()
    (data / "captions").mkdir()
    for subset in SUBSETS[:2]:
        sessions = json.loads(next((data / "circled").rglob(f"{subset}.json")).read_text())
        ids = [i for s in sessions for i in (*(t["reference_image_id"] for t in s["turns"]), s["ground_truth_ids"][0])]
        name = subset.removeprefix("fashioniq_")
        category, split = name.split("_")
        (data / f"splits/split.{category}.{split}.json").write_text(json.dumps([*ids, f"more-{name}"]))
        captions = {i: f"photo {i}" for i in ids}
        (data / f"captions/image_captions_{name}.json").write_text(json.dumps(captions))
    dataset = load(data, subsets=SUBSETS[:2], image_splits="splits", captions="captions")
    assert len(dataset.gallery("dress", "test").images) == 26
    assert dataset.images["fashioniq_dress_val-0-1"].caption == "photo fashioniq_dress_val-0-1"
    assert dataset.images["more-dress_val"].caption is None
    assert any("2 of 52 images have no caption" in note for note in dataset.notes)


def test_problems_name_session_and_key(data: Path) -> None:
    bad = [session("cirr_val", n, 2) for n in range(6)]
    del bad[0]["ground_truth_ids"]
    bad[1]["turns"][1]["relative_caption"] = " "
    bad[2]["num_turns"] = 3
    bad[3]["turns"].reverse()
    bad[4]["subset"] = "cirr_train"
    bad[5]["turns"] = bad[5]["turns"][:1]
    (data / "circled/data/cirr_val.json").write_text(json.dumps([*bad, 3]))
    with pytest.raises(ManifestError) as caught:
        load(data, subsets=("cirr_val", "circo_val"))
    assert [p.place for p in caught.value.problems] == [
        "session 0, key ground_truth_ids",
        "session 1, key turns.1.relative_caption",
        "session 2",
        "session 3",
        "session 4, key subset",
        "session 5, key turns",
        "session 6",
        "",
    ]
    assert "circo_val.json: no such file" in str(caught.value)


@pytest.mark.parametrize(
    ("subsets", "what"),
    [
        (("dress",), "ends in _train or _val"),
        (("../x_val",), "letters, digits and '_'"),
        (("cirr_val", "cirr_val"), "listed twice"),
        ((), "at least 1 item"),
    ],
)
def test_subset_names(subsets: tuple[str, ...], what: str) -> None:
    with pytest.raises(ValidationError, match=what):
        SOURCE.Options(subsets=subsets)


def test_a_target_outside_a_listed_gallery_is_a_problem(data: Path) -> None:
    (data / "splits").mkdir()
    (data / "splits/split.dress.val.json").write_text('["fashioniq_dress_val-0-1"]')
    with pytest.raises(ManifestError, match="is not in the test gallery of 'dress'"):
        load(data, subsets=("fashioniq_dress_val",), image_splits="splits")
