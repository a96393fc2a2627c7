"""Images in tar shards and Parquet files: the rows of a folder of the same bytes, and every bad archive has its reason."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from cache import Store
from manifests.archives import ArchiveError, members, read_member, split
from manifests.datasets._images import ImageFolder, ImageOptions, catalogue
from manifests.errors import ManifestError, Problems
from manifests.load import load_dataset
from manifests.schema import Component, Dataset, RunSpec
from pipeline.extraction.extractors.base import Extractor
from tests.hostile.makers import png

from .conftest import build_dataset
from .helpers import rows_by_key, run

parquet = pytest.importorskip("pyarrow.parquet")
arrow = pytest.importorskip("pyarrow")
Load = Callable[..., Extractor]


def files_of(root: Path) -> list[Path]:
    return sorted(root.glob("*.jpg"))


def write_tar(path: Path, files: list[Path], twice: bool = False) -> None:
    """A WebDataset shard: the key of an image and of its other parts is the name before the first dot."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for n, file in enumerate(files + files[:1] * twice):
            tar.add(file, file.name if n < len(files) else f"./{file.name}")
            label = tarfile.TarInfo(file.with_suffix(".txt").name)
            label.size = 3
            tar.addfile(label, io.BytesIO(b"red"))


def write_parquet(path: Path, files: list[Path], how: str = "struct") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = [file.read_bytes() for file in files]
    columns = {
        "struct": {"image": [{"bytes": d, "path": f.name} for f, d in zip(files, data, strict=True)]},
        "binary": {"id": [file.stem for file in files], "jpg": data, "label": list(range(len(files)))},
        "none": {"id": [file.stem for file in files], "label": list(range(len(files)))},
        "twice": {"id": [file.stem for file in files[:-1]] + [files[0].stem], "image": data},
    }[how]
    parquet.write_table(arrow.table(columns), path, row_group_size=5)


def dataset_in(root: Path, like: Dataset) -> Dataset:
    """``like`` with its images found by their ids below ``root``. Raises ManifestError."""
    problems, notes = Problems("spec"), list[str]()
    folder, images = catalogue(like.images, root, None, problems, notes)
    problems.raise_if_any()
    return like.model_copy(update={"images": images, "images_root": folder})


@pytest.mark.parametrize("kind", ["tar", "struct", "binary"])
def test_rows_are_the_folder_s(load: Load, clip_folder: Path, tmp_path: Path, kind: str) -> None:
    plain = build_dataset(tmp_path / "plain", images=24)
    files = files_of(tmp_path / "plain")
    for n, part in enumerate((files[:14], files[14:])):
        if kind == "tar":
            write_tar(tmp_path / f"packed/shards/{n:03}.tar", part)
        else:
            write_parquet(tmp_path / f"packed/{n:03}.parquet", part, kind)
    packed = dataset_in(tmp_path / "packed", plain)
    assert all("tar/" in str(i.file) or "parquet/" in str(i.file) for i in packed.images.values())
    extractor = load("clip", clip_folder)
    one = run(plain, extractor, tmp_path / "one")
    two = run(packed, extractor, tmp_path / "two", workers=kind != "binary")  # in a process the archive is opened there
    assert two.failed == 0
    first, second = (rows_by_key(Store.open(report.path), "image") for report in (one, two))
    assert first.keys() == second.keys() and all((first[key] == second[key]).all() for key in first)
    again = run(packed, extractor, tmp_path / "one")  # the same store: every row is there
    assert again.path == one.path and again.extracted == 0


def test_a_truncated_tar_costs_the_images_beyond_its_end(load: Load, clip_folder: Path, tmp_path: Path) -> None:
    plain = build_dataset(tmp_path / "plain", images=12)
    shard = tmp_path / "packed/000.tar"
    write_tar(shard, files_of(tmp_path / "plain"))
    with tarfile.open(shard) as tar:
        cut = tar.getmember("i008.jpg").offset_data + 100
    shard.write_bytes(shard.read_bytes()[:cut])
    report = run(dataset_in(tmp_path / "packed", plain), load("clip", clip_folder), tmp_path / "stores")
    failures = {f.item: f.reason for f in Store.open(report.path).failures() if f.table == "image"}
    assert sorted(failures) == ["i008", "i009", "i010", "i011"] and report.tables["image"].extracted == 8
    assert "000.tar is truncated: 100 of" in failures["i008"] and "names no file" in failures["i009"]


@pytest.mark.parametrize(
    ("name", "how", "reason"),
    [
        ("0.parquet", "none", r"0\.parquet: has no image column; .*columns: id, label"),
        ("0.parquet", "twice", r"0\.parquet: holds 'i000' twice"),
        ("0.parquet", "text", r"0\.parquet: is no Parquet file that can be read"),
        ("0.tar", "twice", r"0\.tar: holds 'i000.jpg' twice: names must be unique"),
        ("0.tar", "text", r"0\.tar: is no tar that can be read"),
        ("0.tar.gz", "text", r"0\.tar\.gz: is compressed, so its images cannot be read at random: decompress it"),
    ],
)
def test_a_bad_archive_is_a_problem_of_the_dataset(tmp_path: Path, name: str, how: str, reason: str) -> None:
    plain = build_dataset(tmp_path / "plain")
    path = tmp_path / "packed" / name
    if how == "text":
        path.parent.mkdir()
        path.write_text("no archive")
    elif name.endswith("tar"):
        write_tar(path, files_of(tmp_path / "plain"), twice=True)
    else:
        write_parquet(path, files_of(tmp_path / "plain"), how)
    with pytest.raises(ManifestError, match=reason):
        dataset_in(tmp_path / "packed", plain)


def test_members_by_name(tmp_path: Path) -> None:
    build_dataset(tmp_path / "plain", images=4)
    files = files_of(tmp_path / "plain")[:3]
    write_tar(tmp_path / "a.tar", files)
    write_parquet(tmp_path / "a.parquet", files)
    assert members(tmp_path / "a.parquet") == [file.name for file in files]
    assert read_member(tmp_path / "a.tar", "i001.jpg") == read_member(tmp_path / "a.parquet", "i001.jpg")
    with pytest.raises(FileNotFoundError, match=r"no image 'x' in a\.tar"):
        read_member(tmp_path / "a.tar", "x")
    write_parquet(tmp_path / "a.parquet", files[:2], "none")  # replaced: read again
    with pytest.raises(ArchiveError, match="no image column"):
        members(tmp_path / "a.parquet")
    assert split("a/b.tar/c/d.jpg") == ("a/b.tar", "c/d.jpg") and split("b.tar") is None is split("a/b.jpg")


def test_a_folder_named_like_an_archive_is_a_folder(load: Load, clip_folder: Path, tmp_path: Path) -> None:
    plain = build_dataset(tmp_path / "set.tar")
    packed = dataset_in(tmp_path, plain)
    assert run(packed, load("clip", clip_folder), tmp_path / "stores").tables["image"].extracted == 12
    write_parquet(tmp_path / "packed/set.parquet/0.parquet", files_of(tmp_path / "set.tar"))
    nested = dataset_in(tmp_path / "packed", plain)
    assert run(nested, load("clip", clip_folder), tmp_path / "nested").tables["image"].extracted == 12


def test_odd_members_of_a_tar(tmp_path: Path) -> None:
    """A hard link is its first file; a member of 20 GB, of which the archive has a part, is not read into memory."""
    (tmp_path / "a.png").write_bytes(png(9))
    (tmp_path / "b.png").hardlink_to(tmp_path / "a.png")
    huge = tarfile.TarInfo("c.png")
    huge.size = 20 * 10**9
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(tmp_path / "a.png", "./a.png")
        tar.add(tmp_path / "b.png", "./b.png")
        tar.addfile(huge)
    assert members(tmp_path / "a.tar") == ["a.png", "b.png", "c.png"]
    assert read_member(tmp_path / "a.tar", "b.png") == png(9)
    with pytest.raises(ArchiveError, match="20,000,000,000 bytes, limit"):
        read_member(tmp_path / "a.tar", "c.png")


def test_of_several_members_the_first_with_an_image_is_used(tmp_path: Path) -> None:
    for number, data in enumerate((b"<html>", png(9), png(8))):
        table = arrow.table({"id": ["x"], "image": [data]})
        parquet.write_table(table, tmp_path / f"{number}.parquet")
    folder = ImageFolder(tmp_path)
    assert folder.by_id("x") == "1.parquet/x" and len(folder.notes(missing=False)) == 1


def shop(path: Path, files: list[Path], **more: list) -> None:
    """A Parquet file whose columns have names of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = [file.read_bytes() for file in files]
    columns = {
        "sku": [f.stem for f in files],
        "photo": data,
        "thumb": [d[:10] for d in data],
        "n": list(range(len(files))),
    }
    parquet.write_table(arrow.table(columns | more), path, row_group_size=5)


def source(data: Path, kind: str = "catalogue", **options: object) -> Dataset:
    return load_dataset(
        RunSpec(name="s", dataset=Component(name=kind, **options), extractor=Component(name="clip")), data
    )


def test_a_spec_names_the_columns(dataset: Dataset, tmp_path: Path, clip_folder: Path, load: Load) -> None:
    files = files_of(dataset.images_root)
    shop(tmp_path / "data" / "shop.parquet", files)
    shop(tmp_path / "data" / "shards" / "part-0.parquet", files[:5])
    shop(tmp_path / "data" / "shards" / "part-1.parquet", files[5:])
    one = source(tmp_path / "data", path="shop.parquet", id_column="sku", image_column="photo", label="shop")
    assert list(one.images) == [f.stem for f in files]
    many = source(tmp_path / "data", path="shards", id_column="sku", image_column="photo", label="shop")
    assert next(iter(many.images)) == f"part-0.parquet/{files[0].stem}" and len(many.images) == len(files)
    extractor = load("clip", clip_folder)
    wanted = rows_by_key(Store.open(run(dataset, extractor, tmp_path / "folder").path), "image")
    for number, data in enumerate((one, many)):
        data = data.model_copy(update={"sessions": dataset.sessions[:0]})
        found = rows_by_key(Store.open(run(data, extractor, tmp_path / f"stores{number}", workers=2).path), "image")
        assert found.keys() == wanted.keys() and all((found[key] == wanted[key]).all() for key in wanted)
    problems = Problems("spec")
    options = ImageOptions(id_column="sku", image_column="photo")
    _, images = catalogue(dataset.images, tmp_path / "data" / "shards", None, problems, [], options)
    assert not problems.found and images[files[0].stem].file == f"part-0.parquet/[sku,photo]/{files[0].stem}"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "no column 'id'.*set dataset.image_column"),
        ({"id_column": "sku", "image_column": "foto"}, "no column 'foto' .dataset.image_column.*did you mean 'photo'"),
        ({"id_column": "sku", "image_column": "n"}, "int64 in column 'n', not images"),
    ],
)
def test_a_wrong_column_is_named(options: dict, message: str, dataset: Dataset, tmp_path: Path) -> None:
    shop(tmp_path / "shop.parquet", files_of(dataset.images_root))
    with pytest.raises(ManifestError, match=f"(?s){message}") as caught:
        source(tmp_path, path="shop.parquet", label="shop", **options)
    assert "1 problem found" in str(caught.value) or not options


def test_a_tar_alone_is_a_catalogue(dataset: Dataset, tmp_path: Path) -> None:
    files = files_of(dataset.images_root)
    write_tar(tmp_path / "shop.tar", files)
    found = source(tmp_path, path="shop.tar")
    assert list(found.images) == [f.name for f in files] and found.name == "shop" and found.notes == ()
    assert {i.file for i in found.images.values()} == {f"shop.tar/{f.name}" for f in files}
    whole = (tmp_path / "shop.tar").read_bytes()
    with tarfile.open(tmp_path / "shop.tar") as tar:
        between = tar.getmember(files[5].name).offset
    (tmp_path / "shop.tar").write_bytes(whole[:between])  # every member that is left is whole
    found = source(tmp_path, path="shop.tar")
    assert len(found.images) == 5 and "1 tar files are truncated (first: shop.tar)" in found.notes[0]
    (tmp_path / "shop.tar.gz").write_bytes(b"")
    with pytest.raises(ManifestError, match="is compressed, so its images cannot be read at random"):
        source(tmp_path, path="shop.tar.gz")


def test_a_folder_of_archives_reports_the_broken_one(dataset: Dataset, tmp_path: Path) -> None:
    shop(tmp_path / "shards" / "part-0.parquet", files_of(dataset.images_root))
    with pytest.raises(ManifestError, match=r"set dataset\.image_column"):
        source(tmp_path, path="shards", label="shop")


def test_a_snapshot_of_the_hub_s_cache_is_read(load: Load, clip_folder: Path, tmp_path: Path) -> None:
    """Its archives are links to files whose names are digests."""
    plain = build_dataset(tmp_path / "plain")
    write_parquet(tmp_path / "hub/blobs/0123abcd", files_of(tmp_path / "plain"))
    data = tmp_path / "hub/snapshots/main/data"
    data.mkdir(parents=True)
    (data / "0.parquet").symlink_to("../../../blobs/0123abcd")
    with pytest.raises(ManifestError, match=r"12 of 12 image files are links out .*set dataset\.links = true"):
        dataset_in(data, plain)
    for root, links in ((data, True), (tmp_path / "hub", False)):
        folder, images = catalogue(plain.images, root, None, Problems("spec"), [], ImageOptions(links=links))
        snapshot = plain.model_copy(update={"images": images, "images_root": folder})
        report = run(snapshot, load("clip", clip_folder), tmp_path / f"stores{links}")
        assert report.tables["image"].extracted == 12, report.why
