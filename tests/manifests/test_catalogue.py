"""The dataset `catalogue`: a folder of images, images.jsonl, CSV and Parquet, and what is reported of bad ones."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from manifests.datasets.catalogue import Catalogue, Options
from manifests.errors import ManifestError
from manifests.schema import Dataset


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    for n, name in enumerate(("tops/a.jpg", "tops/b.PNG", "c.jpeg")):
        (tmp_path / "shop" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (n, n, n)).save(tmp_path / "shop" / name)
    (tmp_path / "shop" / "notes.txt").write_text("not an image")
    return tmp_path


def read(folder: Path, path: str, **options: str) -> Dataset:
    return Catalogue.load(Options(path=path, **options), folder)


def refusal(folder: Path, path: str, **options: str) -> str:
    with pytest.raises(ManifestError) as caught:
        read(folder, path, **options)
    return str(caught.value)


def test_a_folder_names_its_images_by_path(shop: Path) -> None:
    found = read(shop, "shop")
    assert found.name == "shop" and found.sessions == ()
    assert sorted(found.images) == ["c.jpeg", "tops/a.jpg", "tops/b.PNG"]
    (gallery,) = found.galleries
    assert (gallery.category, gallery.split) == ("all", "test") and set(gallery.images) == set(found.images)


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_csv_rows_have_ids_files_captions_and_categories(shop: Path, separator: str) -> None:
    rows = [
        ("sku", "photo", "caption", "category"),
        ("1", "shop/tops/a.jpg", "a red top", "top"),
        ("2", "shop/c.jpeg", "", "bag"),
    ]
    (shop / "list.csv").write_text("\n".join(separator.join(row) for row in rows) + "\n", encoding="utf-8-sig")
    found = read(shop, "list.csv", id_column="sku", path_column="photo")
    assert found.name == "list" and found.images["1"].caption == "a red top" and found.images["2"].caption is None
    assert found.images["2"].file == "shop/c.jpeg"
    assert {g.category: g.images for g in found.galleries} == {"all": ("1", "2"), "top": ("1",), "bag": ("2",)}


def test_parquet_equals_csv(shop: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    parquet.write_table(
        pyarrow.table({"id": [7, 8], "path": ["a.jpg", None], "caption": [None, "blue"]}), shop / "t.parquet"
    )
    found = read(shop, "t.parquet", images="shop/tops", label="mine")
    assert found.name == "mine" and found.images["7"].file == "a.jpg" and found.images["8"].caption == "blue"
    assert "not a Parquet file" in refusal(shop, "bad.parquet") if (shop / "bad.parquet").write_bytes(b"x") else False


def test_jsonl_keeps_attributes(shop: Path) -> None:
    line = '{"id": "a", "file": "tops/a.jpg", "attributes": {"color": ["red"]}}\n'
    (shop / "shop" / "images.jsonl").write_text(line)
    assert read(shop, "shop/images.jsonl").attributes == {"a": {"color": ("red",)}}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "is empty"),
        ("name,path\n1,shop/c.jpeg\n", "no column 'id'"),
        ("id,file\n1,shop/c.jpeg\n", "set dataset.path_column; known: file, id"),
        ("id,path\n1,shop/c.jpeg\n1,shop/tops/a.jpg\n", "line 3: image '1' is also on 2"),
        ("id,path\n,shop/c.jpeg\n", "line 2: no id"),
        ("id,path\n1,../secret.jpg\n", "leaves the images folder"),
        ("id,path\n1,nothing.jpg\n", "nor is any other"),
        ('id,path\n1,"shop/c.jpeg\n', "not a CSV file"),
        ("id,path\n", "holds no image"),
    ],
)
def test_bad_tables_are_reported_with_their_place(shop: Path, text: str, expected: str) -> None:
    (shop / "list.csv").write_text(text)
    assert expected in refusal(shop, "list.csv")


def test_a_missing_path_and_an_empty_folder_are_problems(shop: Path) -> None:
    assert "no such file or folder" in refusal(shop, "nowhere")
    (shop / "empty").mkdir()
    assert "holds no image" in refusal(shop, "empty")
