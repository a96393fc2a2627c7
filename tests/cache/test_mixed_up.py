"""Shards and stores that were truncated, swapped or moved are named, and none is taken for another."""

import os
import shutil
from pathlib import Path

import pytest

from cache import (
    Store,
    StoreCorruptError,
    StoreMismatchError,
    list_stores,
    store_path,
)


def test_truncated_swapped_and_foreign_shards(three_shards: Path, tmp_path: Path, writer, rows) -> None:
    image, other = three_shards / "image-00000.h5", three_shards / "image-00002.h5"
    whole = image.read_bytes()
    image.write_bytes(whole[:-1])
    with pytest.raises(StoreCorruptError, match="bytes, not"):
        Store.open(three_shards).keys("image")
    image.write_bytes(other.read_bytes()[: len(whole)].ljust(len(whole), b"\0"))
    with pytest.raises(StoreCorruptError, match="was changed"):
        Store.open(three_shards).keys("image")
    with writer(tmp_path / "twin", fields={"weights": "other"}) as w:  # same keys, same sizes, other model
        w.commit("image", rows(0, 300)[0], rows(7000, 300)[1])
    shutil.copy(tmp_path / "twin" / "image-00000.h5", image)
    assert image.stat().st_size == len(whole)
    for verify, message in (("digest", "digest differs"), ("always", "digest differs"), ("header", "fingerprint is")):
        with pytest.raises(StoreCorruptError, match=message):
            Store.open(three_shards, verify=verify).load("image")


def test_two_shards_swapped_are_named(path: Path, writer, rows) -> None:
    with writer() as w:
        w.commit("image", *rows(0, 10))
        w.commit("image", *rows(10, 10))
    os.rename(path / "image-00000.h5", path / "x")
    os.rename(path / "image-00001.h5", path / "image-00000.h5")
    os.rename(path / "x", path / "image-00001.h5")
    with pytest.raises(StoreCorruptError, match=r"holds the bytes of image-00001.h5: files were swapped"):
        Store.open(path).load("image")
    with pytest.raises(StoreCorruptError, match="number is 1, not 0"):
        Store.open(path, verify="header").load("image")


def test_list_stores(three_shards: Path, tmp_path: Path, writer) -> None:
    (tmp_path / "stores" / "demo" / "empty").mkdir()
    with writer(tmp_path / "stores" / "demo" / "broken-0123456789ab"):
        pass
    manifest = tmp_path / "stores" / "demo" / "broken-0123456789ab" / "manifest.json"
    data = manifest.read_bytes()
    manifest.write_bytes(data[:100] + bytes([data[100] ^ 1]) + data[101:])
    broken, summary = list_stores(tmp_path / "stores")
    assert (summary.path, summary.rows, summary.shards, summary.images) == (
        three_shards,
        {"image": 600, "text": 40},
        4,
        20,
    )
    assert summary.nbytes == Store.open(three_shards).nbytes and summary.problem == ""
    assert (broken.dataset, broken.extractor, broken.rows) == ("demo", "broken", {}) and "damaged" in broken.problem
    assert list_stores(tmp_path / "nowhere") == []


def test_swapped_stores_are_not_taken_for_each_other(path: Path, writer, rows) -> None:
    """Of two fingerprints, and of two datasets whose stores have one fingerprint."""
    other = store_path(path.parent.parent, "demo", "clip", {"weights": "z"})
    elsewhere = path.parent.parent / "shoes" / path.name
    for where, changes in ((path, {}), (other, {"fields": {"weights": "z"}}), (elsewhere, {"dataset": "shoes"})):
        with writer(where, **changes) as w:
            w.commit("image", *rows(0, 3))
        assert Store.open(where).tables["image"].rows == 3
    for one, two in ((path, other), (path, elsewhere)):
        between = path.parent.parent / "between"
        for source, target in ((one, between), (two, one), (between, two)):
            source.rename(target)
        for place in (one, two):
            with pytest.raises(StoreMismatchError, match=f"folder: .* -> .*{place.name}"):
                Store.open(place)
        for source, target in ((one, between), (two, one), (between, two)):
            source.rename(target)
    moved = path.rename(path.parent.parent.parent / "a folder of mine")
    assert Store.open(moved).tables["image"].rows == 3


def test_a_store_is_its_own_below_any_folder_but_stores(path: Path, writer, rows, tmp_path: Path) -> None:
    with writer() as w:
        w.commit("image", *rows(0, 3))
    (tmp_path / "backup").mkdir()
    assert Store.open(path.rename(tmp_path / "backup" / path.name)).dataset == "demo"
