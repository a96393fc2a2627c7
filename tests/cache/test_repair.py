"""Repair takes out exactly what is broken, and puts back what only lost its name."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cache import Manifest, Store, StoreCorruptError, StoreMismatchError, StoreWriter, verify
from cache.hdf5 import write_hdf5
from cache.manifest import ShardInfo, load_manifest
from cache.repair import repair
from cache.shards import expected_attributes
from cache.stat_cache import sha256_of
from manifests.identity import digest

from .conftest import FIELDS
from .test_gc import check, files
from .test_verify import flip

IDENTITY = Manifest("demo", "clip", digest(FIELDS), FIELDS, {})


def errors(path: Path) -> list[str]:
    return [f.code for f in verify(path) if f.level == "error"]


def test_a_whole_store_is_left_alone(three_shards: Path) -> None:
    before = {f.name: f.read_bytes() for f in three_shards.iterdir() if f.name[0] != "."}
    done = repair(three_shards)
    assert (done.findings, done.actions, done.lost, done.left) == (
        [],
        [],
        {},
        [],
    ) and "nothing to repair" in done.text()
    assert {f.name: f.read_bytes() for f in three_shards.iterdir() if f.name[0] != "."} == before


@pytest.mark.parametrize("how", ["flip", "truncate", "delete", "replace"])
def test_a_bad_shard_goes_and_every_other_row_stays(three_shards: Path, rows: Callable, how: str) -> None:
    shard = three_shards / "image-00001.h5"
    bytes_before = shard.read_bytes()
    {
        "flip": lambda: flip(shard, 5000),
        "truncate": lambda: os.truncate(shard, 99),
        "delete": shard.unlink,
        "replace": lambda: shard.write_bytes(b"no HDF5" * 700),
    }[how]()
    damaged = shard.read_bytes() if shard.exists() else None
    done = repair(three_shards)
    assert done.lost == {"image": 5} and done.left == [] and errors(three_shards) == []
    check(three_shards, "image", rows, (0, 300), (305, 295))
    aside = [f.read_bytes() for f in three_shards.glob("*.rejected")]
    assert aside == ([damaged] if damaged is not None else []) and bytes_before not in aside
    with StoreWriter(three_shards, dataset="demo", extractor="clip", fields=FIELDS) as w:  # the ordinary way fills it
        keys, features = rows(0, 600)
        todo = w.missing("image", keys)
        assert todo.sum() == 5
        w.commit("image", keys[todo], features[todo])
    check(three_shards, "image", rows, (0, 600))


def test_swapped_and_renamed_shards_get_their_names_back(three_shards: Path) -> None:
    before = files(three_shards)
    a, b = three_shards / "image-00000.h5", three_shards / "image-00002.h5"
    a.rename(three_shards / "x")
    b.rename(a)
    (three_shards / "x").rename(b)
    (three_shards / "text-00000.h5").rename(three_shards / "my-copy-of-text.h5.bak")
    assert sorted(errors(three_shards)) == ["missing", "size", "size"]
    done = repair(three_shards)
    assert done.lost == {} and done.left == [] and files(three_shards) == before
    assert sum("put " in action for action in done.actions) == 3


def test_a_shard_set_aside_by_mistake_is_put_back(three_shards: Path) -> None:
    before = files(three_shards)
    (three_shards / "image-00002.h5").rename(three_shards / "image-00002.h5.deadbeef.rejected")
    assert repair(three_shards).lost == {} and files(three_shards) == before


def test_rows_of_nan_and_repeated_keys_go_and_their_neighbours_stay(three_shards: Path, rows: Callable) -> None:
    manifest = load_manifest(three_shards)
    keys, features = rows(604, 6)
    keys[2], features[4, 1] = rows(0, 1)[0], np.nan
    file = three_shards / "image-00003.h5"
    about = expected_attributes(manifest, "image", 3, 6, 8)
    at = write_hdf5(file, {"features": features, "keys": keys}, about)
    shard = ShardInfo(file.name, 6, file.stat().st_size, sha256_of(file), at["features"], at["keys"])
    manifest.with_shard("image", 8, "float16", shard).save(three_shards)
    assert sorted(errors(three_shards)) == ["duplicate", "nonfinite"]
    done = repair(three_shards)
    assert done.lost == {"image": 2} and errors(three_shards) == []
    check(three_shards, "image", rows, (0, 600), (604, 2), (607, 1), (609, 1))


def test_a_damaged_catalogue_and_ledger(three_shards: Path, rows: Callable) -> None:
    flip(three_shards / "catalogue.h5", -2)
    flip(three_shards / "ledger.jsonl", 30)
    done = repair(three_shards)
    assert done.left == [] and done.rows_lost == 0 and len(done.actions) == 2
    assert [f for f in verify(three_shards) if f.level != "note" and f.code != "orphan"] == []
    assert len(Store.open(three_shards).receipts()) == 4  # the lost receipt is written again
    check(three_shards, "image", rows, (0, 600))


@pytest.mark.parametrize("how", ["edited", "cut", "gone"])
def test_a_lost_manifest_is_made_again_from_the_ledger(three_shards: Path, rows: Callable, how: str) -> None:
    path = three_shards / "manifest.json"
    if how == "edited":  # what it says of the extractor is still proved by the shards
        path.write_text(path.read_text().replace('"rows": 600', '"rows": 601'))
        done = repair(three_shards)
    else:
        os.truncate(path, 40) if how == "cut" else path.unlink()
        with pytest.raises(StoreCorruptError, match="cache repair SPEC"):
            repair(three_shards)
        wrong = Manifest("demo", "clip", digest({"weights": "other"}), {"weights": "other"}, {})
        with pytest.raises(StoreMismatchError):
            repair(three_shards, wrong)
        done = repair(three_shards, IDENTITY)
    assert done.left == [] and "made a new manifest" in done.text()
    check(three_shards, "image", rows, (0, 600))
    check(three_shards, "text", rows, (1000, 40), dim=6, dtype="float32")
    assert Store.open(three_shards).fields == FIELDS


def test_damage_beside_a_shard_that_no_manifest_names(three_shards: Path, rows: Callable, tmp_path: Path) -> None:
    """As after a crash between rename and manifest, on a disk that also rots."""
    old = (three_shards / "manifest.json").read_bytes()
    with StoreWriter(three_shards, dataset="demo", extractor="clip", fields=FIELDS) as w:
        w.commit("image", *rows(700, 10))
    (three_shards / "manifest.json").write_bytes(old)
    flip(three_shards / "image-00001.h5", 5000)
    done = repair(three_shards)
    assert done.left == [] and errors(three_shards) == []
    check(three_shards, "image", rows, (0, 300), (305, 295))


def test_every_flipped_byte_of_a_small_store_is_found_named_and_repaired(
    tmp_path: Path, rows: Callable, writer: Callable
) -> None:
    store = tmp_path / "small"
    with writer(store) as w:
        w.commit("image", *rows(0, 3))
        w.commit("image", *rows(3, 3))
    for name in ("image-00000.h5", "manifest.json"):
        data = (store / name).read_bytes()
        for at in range(0, len(data), max(1, len(data) // 12)):
            copy = shutil.copytree(store, tmp_path / f"{name}-{at}")
            flip(copy / name, at)
            (finding,) = [f for f in verify(copy) if f.level == "error"]
            assert finding.place == name
            done = repair(copy, IDENTITY)
            assert done.left == []
            kept = ((3, 3),) if name.startswith("image") else ((0, 6),)
            check(copy, "image", rows, *kept)
            json.dumps(done.as_dict())
