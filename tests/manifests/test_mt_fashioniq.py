"""Multi-turn FashionIQ: the paper's counts on the real files, and every kind of damaged file on small ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as Picture

from manifests.datasets import datasets, jsonl
from manifests.errors import ManifestError
from manifests.schema import Dataset

SOURCE = datasets.get("mt_fashioniq")


def load(data: Path, **options: Any) -> Dataset:
    return SOURCE.load(SOURCE.Options(**options), data)


@pytest.fixture(scope="module")
def real(mt_fashioniq: Dataset) -> Dataset:
    return mt_fashioniq


def test_table_1_of_the_paper(real: Dataset) -> None:
    assert real.turn_counts("train") == {2: 6897, 3: 1733, 4: 475}
    assert real.turn_counts("test") == {2: 1752, 3: 483, 4: 165}
    assert (real.gallery_images("train"), real.gallery_images("test")) == (10438, 6274)
    assert [len(real.gallery(c, "test").images) for c in ("dress", "shirt", "toptee")] == [2562, 1770, 1942]
    assert real.categories == ("dress", "shirt", "toptee")
    assert real.averaging == "categories"


def test_what_loading_changed_is_said(real: Dataset) -> None:
    notes = "\n".join(real.notes)
    assert "dropped session toptee/train/01339: it has one turn" in notes
    assert "blank caption strings left out of turns that have other captions: 13" in notes
    assert "38 of 13,578 images have no caption" in notes
    assert "(their own category's is used): 12" in notes
    assert len(real.images) == 13578
    assert sum(image.caption is None for image in real.images.values()) == 38
    assert "toptee/train/01339" not in {s.id for s in real.sessions}


@pytest.mark.slow
def test_the_dialogues_survive_an_export_as_jsonl(real: Dataset, tmp_path: Path) -> None:
    source = datasets.get("jsonl")
    assert source.load(source.Options(**jsonl.export(real, tmp_path / "out")), tmp_path) == real


def test_sessions_keep_their_place_in_the_file(real: Dataset, shared_data: Path) -> None:
    upstream = json.loads((shared_data / "mt_fashioniq/data/dress.val.json").read_text())
    session = next(s for s in real.sessions if s.id == "dress/test/00012")
    assert session.target == upstream[12]["target"][1]
    assert [t.reference for t in session.turns] == [r[2] for r in upstream[12]["reference"]]
    assert [list(t.captions) for t in session.turns] == [r[1] for r in upstream[12]["reference"]]


def test_attributes_are_words_by_field(real: Dataset) -> None:
    assert real.attributes["B00CII5CT6"] == {
        "category": ("skirt", "dress"),
        "fabric": ("cotton",),
        "shape": ("fit", "maxi", "slim"),
        "style": ("please",),
    }
    assert len(real.attributes) == 12598
    assert all(words and all(w for ws in words.values() for w in ws) for words in real.attributes.values())


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """Three images and one session of two turns a category and split, in the upstream layout."""
    root = tmp_path / "mt_fashioniq"
    for folder in ("data", "image_splits", "attr"):
        (root / folder).mkdir(parents=True)
    captions = tmp_path / "captions"
    captions.mkdir()
    for category in ("dress", "shirt", "toptee"):
        for split in ("train", "val"):
            ids = [f"{category}-{split}-{n}" for n in range(3)]
            session = {"target": ["u", ids[2]], "reference": [["u", ["is red"], ids[0]], ["u", ["longer", ""], ids[1]]]}
            (root / f"data/{category}.{split}.json").write_text(json.dumps([session]))
            (root / f"image_splits/split.{category}.{split}.json").write_text(json.dumps(ids))
            words = [["a"], [], ["", "b"], [], [], []]
            attributes = {ids[0]: words, ids[1]: [*words, ["c"], ["d"], [], [], [], []], "other": words}
            (root / f"attr/asin2attr.{category}.{split}.new.json").write_text(json.dumps(attributes))
            named = {i: f"a photo of {i}" for i in ids}
            (captions / f"image_captions_{category}_{split}.json").write_text(json.dumps(named))
    return tmp_path


def test_small_layout(small: Path) -> None:
    dataset = load(small, attributes=True)
    assert [s.id for s in dataset.sessions][:2] == ["dress/train/00000", "dress/test/00000"]
    assert dataset.sessions[0].turns[1].captions == ("longer",)
    assert dataset.attributes["dress-train-0"] == {"category": ("a",), "fabric": ("b",)}
    assert dataset.attributes["dress-train-1"] == {"category": ("a", "c"), "fabric": ("b",), "texture": ("d",)}
    assert "other" not in dataset.attributes
    assert any("no images and no captions" in note for note in dataset.notes)


def test_images_are_found_in_any_subfolder(small: Path) -> None:
    for number, name in enumerate(("a/dress-train-0.jpg", "b/dress-train-1.png", "dress-train-2.jpeg")):
        path = small / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Picture.new("RGB", (4, 4), (number, 0, 0)).save(path)
    dataset = load(small, images="images")
    assert dataset.images_root == small / "images"
    assert [dataset.images[f"dress-train-{n}"].file for n in range(3)] == [
        "a/dress-train-0.jpg",
        "b/dress-train-1.png",
        "dress-train-2.jpeg",
    ]
    assert dataset.images["shirt-val-0"].file is None
    assert any("15 of 18 images have no file in images/" in note for note in dataset.notes)


def test_a_folder_without_any_of_the_images_is_a_problem(small: Path) -> None:
    (small / "empty").mkdir()
    with pytest.raises(ManifestError, match=r"key dataset.images: holds no image .*dress-train-0\.jpg"):
        load(small, images="empty")


def test_session_images_outside_the_lists_join_the_catalogue(small: Path) -> None:
    path = small / "mt_fashioniq/image_splits/split.dress.train.json"
    path.write_text(json.dumps(["dress-train-0"]))
    dataset = load(small)
    assert {"dress-train-1", "dress-train-2"} <= dataset.images.keys()
    assert any("in no image_splits list, added to the catalog: 2" in note for note in dataset.notes)


def test_the_caption_of_an_images_own_category_is_used(small: Path) -> None:
    path = small / "captions/image_captions_dress_train.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"shirt-val-0": "wrong category"}))
    dataset = load(small, captions="captions")
    assert dataset.images["shirt-val-0"].caption == "a photo of shirt-val-0"
    assert any("(their own category's is used): 1" in note for note in dataset.notes)


def test_every_problem_of_every_file_is_reported_at_once(small: Path) -> None:
    root = small / "mt_fashioniq"
    (root / "data/dress.train.json").unlink()
    (root / "data/dress.val.json").write_text('[\n{"target": ["u", "x"],\n]')
    (root / "data/shirt.train.json").write_text('{"target": 1}')
    good = {"target": ["u", "shirt-val-2"], "reference": [["u", ["red"], "shirt-val-0"], ["u", [" "], "shirt-val-1"]]}
    sessions = [7, {"target": "x", "reference": []}, {"target": ["u", "x"], "reference": [["u", "red", "y"]]}, good]
    (root / "data/shirt.val.json").write_text(json.dumps(sessions))
    (root / "image_splits/split.toptee.val.json").write_bytes(b'["\xff"]')
    (root / "image_splits/split.toptee.train.json").write_text('["toptee-train-0", 3]')
    with pytest.raises(ManifestError) as caught:
        load(small)
    found = {(Path(p.file).name, p.place): p.what for p in caught.value.problems}
    assert found["dress.train.json", ""] == "no such file"
    assert found["dress.val.json", "line 3 column 1"].startswith("not valid JSON")
    assert found["shirt.train.json", ""] == "found dict"
    assert found["shirt.val.json", "session 0"] == "found '7'"
    assert found["shirt.val.json", "session 1 target"] == "found 'x'"
    assert "session 2 turn 1" in {place for _, place in found}
    assert found["shirt.val.json", "session 3 turn 2"] == "empty caption"
    assert found["split.toptee.val.json", "byte 2"] == "not UTF-8 text"
    assert found["split.toptee.train.json", "entry 1"] == "found 3"
    assert caught.value.exit_code == 4


def test_a_test_target_outside_the_gallery_is_a_problem(small: Path) -> None:
    path = small / "mt_fashioniq/image_splits/split.dress.val.json"
    path.write_text(json.dumps(["dress-val-0", "dress-val-1"]))
    with pytest.raises(ManifestError, match="target 'dress-val-2' is not in the test gallery of 'dress'"):
        load(small)


def test_malformed_attributes_and_captions(small: Path) -> None:
    (small / "mt_fashioniq/attr/asin2attr.dress.train.new.json").write_text('{"dress-train-0": [["a"], []]}')
    with pytest.raises(ManifestError, match=r"key 'dress-train-0': .*expected six lists of words"):
        load(small, attributes=True)
    (small / "captions/image_captions_dress_train.json").write_text('{"dress-train-0": 3}')
    with pytest.raises(ManifestError, match="key 'dress-train-0': found 3"):
        load(small, captions="captions")


@pytest.mark.parametrize("given", ["../elsewhere", "a/../../b", "..\\elsewhere"])
def test_folders_stay_inside_the_data_folder(small: Path, given: str) -> None:
    with pytest.raises(ManifestError, match=r"key dataset\.annotations: .* leaves the data folder"):
        load(small, annotations=given)


def test_an_absolute_folder_is_taken_as_it_is(small: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("data")
    assert len(load(elsewhere, annotations=str(small / "mt_fashioniq")).sessions) == 6
