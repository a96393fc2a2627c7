"""CIRR and CIRCO as datasets of one-turn sessions, on files of their layout and CIRCO's own annotations."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as Pillow

from manifests.errors import ManifestError
from manifests.load import load_dataset
from manifests.schema import Component, Dataset, RunSpec


def load(data: Path, name: str, **options: Any) -> Dataset:
    spec = RunSpec(name="x", dataset=Component(name=name, **options), extractor=Component(name="none"))
    return load_dataset(spec, data)


def test_cirr_has_a_session_for_each_pair(tmp_path: Path) -> None:
    for folder in ("captions", "image_splits"):
        (tmp_path / "cirr" / folder).mkdir(parents=True)
    (tmp_path / "images" / "dev").mkdir(parents=True)
    for split in ("train", "val"):
        names = [f"{split}-{n}-img0" for n in range(4)]
        for name in names:
            Pillow.new("RGB", (4, 4)).save(tmp_path / "images" / "dev" / f"{name}.png")
        pair = {"pairid": 5, "reference": names[0], "target_hard": names[1], "caption": "is open"}
        pair = {**pair, "pairid": 5 if split == "val" else 6, "img_set": {"members": names}}
        (tmp_path / "cirr" / "captions" / f"cap.rc2.{split}.json").write_text(json.dumps([pair]))
        lists = {name: f"./dev/{name}.png" for name in names}
        (tmp_path / "cirr" / "image_splits" / f"split.rc2.{split}.json").write_text(json.dumps(lists))
    found = load(tmp_path, "cirr", images="images")
    assert [(s.id, s.split, s.target) for s in found.sessions] == [
        ("6", "train", "train-1-img0"),
        ("5", "test", "val-1-img0"),
    ]
    assert found.images["val-0-img0"].file == "dev/val-0-img0.png" and len(found.gallery("cirr", "test").images) == 4
    assert not load(tmp_path, "cirr", images="images", train=False).split("train")
    (tmp_path / "cirr" / "captions" / "cap.rc2.val.json").write_text(json.dumps([{"pairid": 5, "reference": "a"}]))
    with pytest.raises(ManifestError, match=r"cap\.rc2\.val\.json.*entry 0.*expected pairid"):
        load(tmp_path, "cirr", images="images")


def test_circo_names_files_by_twelve_digits(tmp_path: Path) -> None:
    query = {"id": 3, "reference_img_id": 7, "target_img_id": 80, "gt_img_ids": [80, 9], "relative_caption": "is wet"}
    (tmp_path / "circo").mkdir()
    (tmp_path / "circo" / "val.json").write_text(json.dumps([query]))
    (tmp_path / "coco").mkdir()
    for number in (7, 80, 9, 100):
        Pillow.new("RGB", (4, 4)).save(tmp_path / "coco" / f"{number:012d}.jpg")
    few = load(tmp_path, "circo", images="coco")
    assert set(few.gallery("circo", "test").images) == {"7", "80", "9"} and few.images["7"].file == "000000000007.jpg"
    assert few.sessions[0].id == "3" and any("not COCO's" in note for note in few.notes)
    (tmp_path / "info.json").write_text(json.dumps({"images": [{"id": n} for n in (100, 9, 80, 7)]}))
    whole = load(tmp_path, "circo", images="coco", gallery="info.json")
    assert set(whole.gallery("circo", "test").images) == {"7", "80", "9", "100"}
    (tmp_path / "circo" / "val.json").write_text(json.dumps([{"id": 3, "reference_img_id": 7}]))
    with pytest.raises(ManifestError, match=r"val\.json.*entry 0.*gt_img_ids"):
        load(tmp_path, "circo", images="coco")


def test_the_published_queries_of_circo_are_read() -> None:
    data = Path(os.environ.get("FASHION_NTM_TEST_DATA", ""))
    if not (data / "circo" / "val.json").is_file():
        pytest.skip("FASHION_NTM_TEST_DATA has no circo/val.json")
    found = load(data, "circo")
    assert len(found.split("test")) == 220 and found.turn_counts("test") == {1: 220}
