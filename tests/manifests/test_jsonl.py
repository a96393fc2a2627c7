"""Plain JSONL sessions: reading, what is wrong with a line, and export of any data set and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as Picture

from manifests.datasets import datasets
from manifests.datasets.jsonl import export
from manifests.errors import FashionNTMError, ManifestError
from manifests.load import load_dataset, load_spec
from manifests.schema import Dataset

SOURCE = datasets.get("jsonl")

IMAGES = [{"id": f"i{n}", "caption": f"a dress number {n}"} for n in range(5)]
SESSIONS = [
    {
        "id": f"s{n}",
        "category": "dress",
        "split": split,
        "turns": [{"reference": f"i{n}", "captions": ["is red"]}, {"reference": f"i{n + 1}", "captions": ["a", "b"]}],
        "target": f"i{n + 2}",
    }
    for n, split in enumerate(["train", "test", "test"])
]


def write(folder: Path, name: str, records: list[Any]) -> None:
    folder.mkdir(exist_ok=True)
    lines = [r if isinstance(r, str) else json.dumps(r) for r in records]
    (folder / name).write_text("\n".join(lines) + "\n")


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    write(tmp_path / "mine", "images.jsonl", IMAGES)
    write(tmp_path / "mine", "sessions.jsonl", SESSIONS)
    return tmp_path / "mine"


def load(folder: Path, **options: Any) -> Dataset:
    return SOURCE.load(SOURCE.Options(folder=folder.name, **options), folder.parent)


def test_galleries_default_to_every_image_of_the_category(mine: Path) -> None:
    dataset = load(mine)
    assert dataset.name == "mine"
    assert dataset.gallery("dress", "test").images == ("i0", "i1", "i2", "i3", "i4")
    assert dataset.gallery("dress", "train").images == dataset.gallery("dress", "test").images
    assert dataset.images_root is None
    assert dataset.sessions[1].turns[1].text == "a and b"


def test_listed_galleries_and_about(mine: Path) -> None:
    write(mine, "galleries.jsonl", [{"category": "dress", "split": "test", "images": ["i4", "i3"]}])
    write(mine, "dataset.json", [{"name": "other", "averaging": "sessions", "notes": ["by hand"]}])
    dataset = load(mine)
    assert dataset.gallery("dress", "test").images == ("i4", "i3")
    assert len(dataset.gallery("dress", "train").images) == 5
    assert (dataset.name, dataset.averaging, dataset.notes) == ("other", "sessions", ("by hand",))
    assert load(mine, label="third", averaging="categories").name == "third"


def test_every_bad_line_is_named(mine: Path) -> None:
    write(
        mine, "images.jsonl", [*IMAGES, IMAGES[0], {"id": "x", "file": "../x.jpg"}, {"id": "y", "colour": "red"}, "{"]
    )
    one_turn = SESSIONS[0] | {"id": "one", "turns": SESSIONS[0]["turns"][:1]}
    blank = SESSIONS[0] | {"id": "blank", "turns": [{"reference": "i0", "captions": [" "]}] * 2}
    no_target = {key: value for key, value in SESSIONS[0].items() if key != "target"}
    write(mine, "sessions.jsonl", [*SESSIONS, one_turn, blank, no_target, SESSIONS[1], SESSIONS[0] | {"split": "val"}])
    gallery = {"category": "dress", "split": "test", "images": ["i3"]}
    write(mine, "galleries.jsonl", [gallery, gallery])
    with pytest.raises(ManifestError) as caught:
        load(mine)
    found = {(Path(p.file).name, p.place): f"{p.what} ({p.fix})" for p in caught.value.problems}
    assert set(found) == {
        ("images.jsonl", "line 6"),
        ("images.jsonl", "line 7, key file"),
        ("images.jsonl", "line 8, key colour"),
        ("images.jsonl", "line 9"),
        ("sessions.jsonl", "line 4"),
        ("sessions.jsonl", "line 5, key turns.0.captions"),
        ("sessions.jsonl", "line 5, key turns.1.captions"),
        ("sessions.jsonl", "line 6, key target"),
        ("sessions.jsonl", "line 7"),
        ("sessions.jsonl", "line 8, key split"),
        ("galleries.jsonl", ""),
    }
    assert "also on line 1" in found["images.jsonl", "line 6"]
    assert "known: attributes, caption, file, id" in found["images.jsonl", "line 8, key colour"]
    assert "empty caption" in found["sessions.jsonl", "line 5, key turns.0.captions"]
    assert "also on line 2" in found["sessions.jsonl", "line 7"]


def test_what_no_single_line_shows(mine: Path) -> None:
    write(mine, "sessions.jsonl", [SESSIONS[0] | {"target": "gone"}, *SESSIONS[1:]])
    write(mine, "galleries.jsonl", [{"category": "dress", "split": "test", "images": ["i3", "i3"]}])
    with pytest.raises(ManifestError) as caught:
        load(mine)
    text = str(caught.value)
    assert "session 's0' target: image 'gone' is not in the catalog" in text
    assert "target 'i4' is not in the test gallery of 'dress'" in text
    assert "image 'i3' is listed 2 times" in text


def test_empty_and_missing_files(mine: Path) -> None:
    (mine / "sessions.jsonl").write_text("\n\n")
    with pytest.raises(ManifestError, match="holds no session"):
        load(mine)
    (mine / "images.jsonl").unlink()
    with pytest.raises(ManifestError, match=r"images.jsonl: no such file"):
        load(mine)
    with pytest.raises(ManifestError, match=r"key dataset\.folder: no such folder"):
        SOURCE.load(SOURCE.Options(folder="nowhere"), mine.parent)


@pytest.fixture
def with_files(mine: Path) -> Path:
    (mine / "tops").mkdir()
    for n in range(4):
        Picture.new("RGB", (3, 3), (n, n, n)).save(mine / f"tops/{n}.png")
    write(
        mine, "images.jsonl", [{"id": f"i{n}", "file": f"tops/{n}.png", "attributes": {"k": ["w"]}} for n in range(5)]
    )
    return mine


def test_some_missing_image_files_are_noted(with_files: Path) -> None:
    dataset = load(with_files)
    assert dataset.images_root == with_files
    assert any("1 of 5 image files are missing (first: tops/4.png, line 5)" in note for note in dataset.notes)
    assert dataset.attributes["i0"] == {"k": ("w",)}


def test_no_image_file_at_all_is_a_problem(with_files: Path) -> None:
    (with_files.parent / "empty").mkdir()
    with pytest.raises(ManifestError, match=r"line 1, key file: 'tops/0.png' is not in .*empty"):
        load(with_files, images="empty")


def test_a_link_out_of_the_images_folder_is_refused(with_files: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(b"x")
    (with_files / "tops/0.png").unlink()
    (with_files / "tops/0.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(
        ManifestError, match=r"1 of 4 image files are links out of the images folder \(first: 'tops/0\.png'"
    ):
        load(with_files)


def test_export_and_back(with_files: Path, tmp_path: Path) -> None:
    dataset = load(with_files)
    options = export(dataset, tmp_path / "out")
    again = SOURCE.load(SOURCE.Options(**options), tmp_path)
    kept = {"images", "sessions", "galleries", "attributes", "averaging", "name", "images_root"}
    assert again.model_dump(include=kept) == dataset.model_dump(include=kept)
    assert set(dataset.notes) <= set(again.notes)


def test_export_with_images_stands_alone(with_files: Path, tmp_path: Path) -> None:
    dataset = load(with_files)
    options = export(dataset, tmp_path / "out", copy_images=True)
    again = SOURCE.load(SOURCE.Options(**options), tmp_path)
    assert again.images_root == tmp_path / "out/files"
    assert again.images == dataset.images
    copied = (tmp_path / "out/files/tops/1.png").read_bytes()
    assert copied == (with_files / "tops/1.png").read_bytes()
    export(dataset, tmp_path / "out", copy_images=True)  # a second export replaces the first
    assert not list((tmp_path / "out").glob(".*"))


def test_export_refuses_files_outside_the_folder(with_files: Path, tmp_path: Path) -> None:
    dataset = load(with_files)
    images = dataset.images | {"i0": dataset.images["i0"].model_copy(update={"file": "../mine/tops/1.png"})}
    with pytest.raises(FashionNTMError, match=r"image 'i0': file '\.\./mine/tops/1\.png' leaves"):
        export(dataset.model_copy(update={"images": images}), tmp_path / "out", copy_images=True)


def test_turn_targets_of_the_spec_a_session_and_the_dataset(mine: Path, tmp_path: Path) -> None:
    def kinds(**options: Any) -> list[str]:
        return [s.turn_targets for s in load(mine, **options).sessions]

    assert kinds() == ["next"] * 3
    write(mine, "dataset.json", [{"turn_targets": "final"}])
    write(mine, "sessions.jsonl", [SESSIONS[0] | {"turn_targets": "next"}, *SESSIONS[1:]])
    assert kinds() == ["next", "final", "final"]
    assert load(mine).sessions[1].targets == ("i3", "i3")
    assert kinds(turn_targets="final") == ["final"] * 3
    assert kinds(turn_targets="next") == ["next"] * 3
    export(load(mine), tmp_path / "again")
    assert [s.turn_targets for s in load(tmp_path / "again").sessions] == kinds()
    write(mine, "sessions.jsonl", [SESSIONS[0] | {"turn_targets": "last"}, *SESSIONS[1:]])
    with pytest.raises(ManifestError, match="key turn_targets"):
        load(mine)


@pytest.mark.parametrize("place", ["training", "models.lstm.training"])
def test_recombining_is_refused_where_turns_lead_to_the_final_target(mine: Path, place: str) -> None:
    text = f'name = "x"\n[dataset]\nname = "jsonl"\nfolder = "mine"\n[extractor]\nname = "clip"\n[{place}]\nrecombine = 0.5\n'
    (mine / "x.toml").write_text(text)
    assert load_dataset(load_spec(str(mine / "x.toml")), mine.parent).turn_targets == ("next",)
    spec = load_spec(str(mine / "x.toml"), ["dataset.turn_targets=final"])
    with pytest.raises(ManifestError, match=f"key {place}.recombine: 0.5 on a dataset whose turns lead to the final"):
        load_dataset(spec, mine.parent)
