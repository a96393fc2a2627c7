"""Image files as real folders hold them: spellings, several files for one id, links and absolute paths."""

from __future__ import annotations

import json
import os
import unicodedata
from pathlib import Path

import pytest
from PIL import Image as Picture

from manifests.datasets import datasets
from manifests.datasets._images import ImageFolder, ImageOptions, catalogue
from manifests.errors import ManifestError, Problems
from manifests.schema import Dataset

JSONL = datasets.get("jsonl")


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Picture.new("RGB", (4, 4)).save(path, "PNG")


def jsonl(tmp_path: Path, files: list[str], **options: object) -> Dataset:
    """A dataset in ``tmp_path/mine`` whose images i0, i1, ... are ``files``."""
    folder = tmp_path / "mine"
    folder.mkdir(exist_ok=True)
    images = [{"id": f"i{n}", "file": file} for n, file in enumerate(files)]
    turns = [{"reference": "i0", "captions": ["red"]}] * 2
    sessions = [{"id": "s", "category": "dress", "split": "test", "turns": turns, "target": "i0"}]
    for name, records in (("images", images), ("sessions", sessions)):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    return JSONL.load(JSONL.Options(folder="mine", **options), tmp_path)


def refused(tmp_path: Path, files: list[str], **options: object) -> str:
    """The one problem's line."""
    with pytest.raises(ManifestError) as caught:
        jsonl(tmp_path, files, **options)
    head, line = str(caught.value).split("\n")
    assert head == "1 problem found"
    return line


def test_ids_with_and_without_a_suffix(tmp_path: Path) -> None:
    for name in ("b/x.jpg", "a/x.jpg", "a/y.PNG", "z.txt", "v.1.jpg", "u/w.JPeG"):
        picture(tmp_path / name)
    folder = ImageFolder(tmp_path)
    assert folder.by_id("x") == "a/x.jpg"
    assert folder.by_id("x.png") == "a/x.jpg"
    assert folder.by_id("v.1") == "v.1.jpg"
    assert folder.by_id("y") == folder.by_id("y.png") == "a/y.PNG"
    assert folder.by_id("w") == folder.by_id("w.jpg") == "u/w.JPeG"
    assert folder.by_id("none") is None and folder.by_id("X") is None


def test_half_of_a_folder_in_upper_case_is_found(tmp_path: Path) -> None:
    names = [f"B{n}.{'JPG' if n % 2 else 'jpg'}" for n in range(6)]
    for name in names:
        picture(tmp_path / name)
    notes: list[str] = []
    _, images = catalogue([f"B{n}" for n in range(6)], tmp_path, None, Problems(), notes)
    assert [image.file for image in images.values()] == names and not notes


def test_of_several_files_the_first_that_begins_like_an_image_is_taken(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"")
    (tmp_path / "b.jpg").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    for name in ("a.png", "b.webp", "c.jpg", "c.png"):
        picture(tmp_path / name)
    notes: list[str] = []
    _, images = catalogue("abc", tmp_path, None, Problems(), notes)
    assert [image.file for image in images.values()] == ["a.png", "b.webp", "c.jpg"]
    assert notes == [f"3 images have several files in {tmp_path.name}/ (first: a, a.png is read)"]


@pytest.mark.parametrize(("on_disk", "asked"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_composed_and_decomposed_names_are_one_name(tmp_path: Path, on_disk: str, asked: str) -> None:
    stored, wanted = (unicodedata.normalize(form, "Kleidchen-grün-é") for form in (on_disk, asked))
    picture(tmp_path / f"mine/{stored}.png")
    assert ImageFolder(tmp_path / "mine").by_id(wanted) == f"{stored}.png"
    dataset = jsonl(tmp_path, [f"{wanted}.png"])
    assert dataset.images["i0"].file == f"{stored}.png"
    assert (tmp_path / "mine" / dataset.images["i0"].file).is_file()


def test_backslashes_upper_case_and_absolute_paths_inside_are_read_with_one_note(tmp_path: Path) -> None:
    for n in range(4):
        picture(tmp_path / f"mine/tops/{n}.PNG")
    inside = str(tmp_path / "mine/tops/2.PNG")
    dataset = jsonl(tmp_path, ["tops\\0.PNG", "tops/1.png", inside, "tops/3.PNG"])
    assert [image.file for image in dataset.images.values()] == [f"tops/{n}.PNG" for n in range(4)]
    assert dataset.notes[0] == "2 image files were found under another spelling (tops\\0.PNG: tops/0.PNG)"


def test_absolute_paths_elsewhere_are_one_line_with_the_option(tmp_path: Path) -> None:
    for n in range(30):
        picture(tmp_path / f"store/{n}.png")
    files = [str(tmp_path / f"store/{n}.png") for n in range(30)]
    line = refused(tmp_path, files)
    assert f"line 1, key file: file '{files[0]}' leaves the images folder" in line
    assert "30 of 30 files do" in line and "set dataset.images to the folder" in line
    assert jsonl(tmp_path, files, images=str(tmp_path / "store")).images["i3"].file == "3.png"
    assert "without '..'" in refused(tmp_path, ["../store/1.png"])


def test_links_out_of_the_folder_are_one_line_and_the_option_follows_them(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    for n in range(30):
        picture(tmp_path / f"store/deep/{n}.png")
        (tmp_path / f"mine/{n}.png").symlink_to(tmp_path / f"store/deep/{n}.png")
    files = [f"{n}.png" for n in range(30)]
    line = refused(tmp_path, files)
    assert "30 of 30 image files are links out of the images folder (first: '0.png', to " in line
    assert "set dataset.links = true" in line
    followed = jsonl(tmp_path, files, links=True)
    assert followed.images_root == tmp_path.resolve()
    assert followed.images["i7"].file == "store/deep/7.png"


def test_linked_folders_are_named_with_the_option(tmp_path: Path) -> None:
    picture(tmp_path / "store/a.png")
    (tmp_path / "images").mkdir()
    (tmp_path / "images/more").symlink_to(tmp_path / "store")
    (tmp_path / "images/circle").symlink_to(tmp_path / "images")
    problems = Problems()
    catalogue(["a"], tmp_path / "images", None, problems, [])
    assert "linked folders in images/ were left out (first: " in problems.found[0].fix
    assert "set dataset.links = true" in problems.found[0].fix
    problems = Problems()
    root, images = catalogue(["a"], tmp_path / "images", None, problems, [], ImageOptions(links=True))
    assert not problems.found and root is not None
    assert (root / str(images["a"].file)).resolve() == (tmp_path / "store/a.png").resolve()


def test_a_name_that_is_no_utf8_is_left_out_and_named(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    try:
        (tmp_path / os.fsdecode(b"gr\xfcn")).mkdir()
    except OSError:
        pytest.skip("this file system takes UTF-8 names alone")
    picture(tmp_path / os.fsdecode(b"gr\xfcn") / "b.png")
    notes: list[str] = []
    _, images = catalogue("ab", tmp_path, None, Problems(), notes)
    assert (images["a"].file, images["b"].file) == ("a.png", None)
    assert any("1 names in" in note and "are no UTF-8 (first: 'gr\\udcfcn')" in note for note in notes)
