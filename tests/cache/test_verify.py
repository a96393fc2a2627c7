from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from cache import Store, StoreNotFoundError, StoreWriter, verify
from cache.files import write_all
from cache.hdf5 import write_hdf5
from cache.manifest import ShardInfo, load_manifest
from cache.shards import expected_attributes
from cache.stat_cache import sha256_of
from manifests.identity import digest


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 4
    path.write_bytes(bytes(data))


def test_a_whole_store_has_no_findings(three_shards: Path) -> None:
    files: list[str] = []
    assert verify(three_shards, files.append) == []
    assert files == ["image-00000.h5", "image-00001.h5", "image-00002.h5", "text-00000.h5"]


def cases() -> dict[str, tuple[Callable[[Path], object], str, str]]:
    return {
        "digest": (lambda p: flip(p / "image-00001.h5", -20), "error", "image-00001.h5"),
        "size": (lambda p: os.truncate(p / "image-00001.h5", 100), "error", "image-00001.h5"),
        "missing": (lambda p: (p / "text-00000.h5").unlink(), "error", "text-00000.h5"),
        "manifest": (lambda p: flip(p / "manifest.json", 80), "error", "manifest.json"),
        "catalogue": (lambda p: flip(p / "catalogue.h5", -2), "error", "catalogue.h5"),
        "orphan": (lambda p: shutil.copy(p / "text-00000.h5", p / "text-00001.h5"), "warning", "text-00001.h5"),
        "rejected": (
            lambda p: (p / "image-00009.h5.0123abcd.rejected").touch(),
            "warning",
            "image-00009.h5.0123abcd.rejected",
        ),
        "temporary": (lambda p: (p / ".image-00003.h5.7-0a0b.tmp").touch(), "note", ".image-00003.h5.7-0a0b.tmp"),
        "ledger": (lambda p: flip(p / "ledger.jsonl", 30), "warning", "ledger.jsonl"),
    }


@pytest.mark.parametrize("code", cases())
def test_what_is_wrong_is_found_and_named(three_shards: Path, code: str) -> None:
    damage, level, place = cases()[code]
    damage(three_shards)
    (finding,) = [f for f in verify(three_shards) if f.code == code]
    assert (finding.level, finding.place) == (level, place) and place in str(finding)
    assert all(f.code == code for f in verify(three_shards))


def test_every_flipped_byte_of_a_shard_is_found(three_shards: Path) -> None:
    shard = three_shards / "image-00001.h5"
    data = shard.read_bytes()
    for at in {*range(0, len(data), 499), len(data) - 1}:
        flip(shard, at)
        assert [(f.code, f.place) for f in verify(three_shards)] == [("digest", shard.name)]
        shard.write_bytes(data)


def test_a_renamed_store_is_noted(three_shards: Path) -> None:
    moved = three_shards.rename(three_shards.with_name("clip-renamed"))
    (finding,) = verify(moved)
    assert (finding.level, finding.code) == ("note", "place")


def test_a_torn_ledger_is_noted(three_shards: Path) -> None:
    with open(three_shards / "ledger.jsonl", "ab") as handle:
        handle.write(b'{"kind": "fail')
    (finding,) = verify(three_shards)
    assert (finding.level, finding.code) == ("note", "ledger")


def test_images_that_point_nowhere(three_shards: Path, writer, rows) -> None:
    with writer() as w:
        w.bind({"here": rows(0, 1)[0].tobytes(), "nowhere": bytes(16), "failed": bytes([1] * 16)})
        w.fail("image", "failed", "decode", "truncated")
    (finding,) = verify(three_shards)
    assert finding.code == "dangling" and "1 of 3 images" in finding.what and "'nowhere'" in finding.what


def test_rows_that_should_never_have_entered(three_shards: Path, rows) -> None:
    """NaN and a repeated key, in a shard with a right digest: as another program might write it."""
    manifest, table = load_manifest(three_shards), load_manifest(three_shards).tables["image"]
    keys, features = rows(604, 6)
    keys[2] = rows(0, 1)[0]
    features[4, 1] = np.nan
    file = three_shards / "image-00003.h5"
    about = expected_attributes(manifest, "image", 3, 6, table.dim)
    offsets = write_hdf5(file, {"features": features, "keys": keys}, about)
    shard = ShardInfo(file.name, 6, file.stat().st_size, sha256_of(file), offsets["features"], offsets["keys"])
    manifest.with_shard("image", table.dim, table.dtype, shard).save(three_shards)
    nan, again = sorted(verify(three_shards), key=lambda f: f.code, reverse=True)
    assert nan.code == "nonfinite" and "1 rows, first row 4" in nan.what and again.code in ("duplicate", "dangling")
    with open(file, "r+b") as handle:  # the NaN mended, digest and manifest too: what is left is the repeated key
        write_all(handle.fileno(), memoryview(np.ones(8, np.float16)), offsets["features"] + 4 * 16)
    about = json.loads((three_shards / "manifest.json").read_text())
    about["tables"]["image"]["shards"][3]["sha256"] = sha256_of(file)
    about.pop("digest")
    (three_shards / "manifest.json").write_text(json.dumps({**about, "digest": digest(about)}))
    (finding,) = verify(three_shards)
    assert (finding.code, finding.place) == ("duplicate", "image")
    assert Store.open(three_shards).find("image", keys[2:3]).tolist() == [0]


def test_a_shard_of_another_header(three_shards: Path, rows) -> None:
    manifest, file = load_manifest(three_shards), three_shards / "image-00003.h5"
    keys, features = rows(605, 6)
    about = {**expected_attributes(manifest, "image", 3, 6, 8), "fingerprint": "0" * 64}
    offsets = write_hdf5(file, {"features": features, "keys": keys}, about)
    shard = ShardInfo(file.name, 6, file.stat().st_size, sha256_of(file), offsets["features"] + 2, offsets["keys"])
    manifest.with_shard("image", 8, "float16", shard).save(three_shards)
    assert [f.code for f in verify(three_shards)] == ["header", "header"]


def test_a_repacked_shard_is_noted(three_shards: Path) -> None:
    about, name = json.loads((three_shards / "manifest.json").read_text()), "text-00000.h5"
    with h5py.File(three_shards / name) as old, h5py.File(three_shards / "x", "w") as new:
        new.attrs.update(old.attrs)
        for data in ("features", "keys"):
            new.create_dataset(data, data=old[data][:], chunks=True, compression="gzip")
    os.replace(three_shards / "x", three_shards / name)
    shard = about["tables"]["text"]["shards"][0]
    shard.update(
        features_at=None,
        keys_at=None,
        sha256=sha256_of(three_shards / name),
        bytes=(three_shards / name).stat().st_size,
    )
    about.pop("digest")
    (three_shards / "manifest.json").write_text(json.dumps({**about, "digest": digest(about)}))
    (finding,) = verify(three_shards)
    assert (finding.level, finding.code) == ("note", "contiguity")


def test_no_store(tmp_path: Path) -> None:
    with pytest.raises(StoreNotFoundError):
        verify(tmp_path / "nowhere")
    (finding,) = verify(tmp_path)
    assert finding.code == "manifest"


def unit(count: int, dim: int = 16, dtype: str = "float16") -> np.ndarray:
    rows = np.random.default_rng(3).standard_normal((count, dim))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(dtype)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_norms_are_held_against_the_fingerprint(tmp_path: Path, rows, dtype: str) -> None:
    features = unit(400, dtype=dtype)
    features[7] *= 1.01
    features[9] = 0
    for fields, wanted in (
        ({"normalise": True}, [("error", "zero", 9), ("error", "norm", 7)]),
        (
            {"composer": {"name": "gated"}, "backbone": {"normalise": False}},
            [("error", "zero", 9), ("error", "norm", 7)],
        ),
        ({"normalise": False}, [("warning", "zero", 9)]),
    ):
        path = tmp_path / digest(fields)[:12]
        with StoreWriter(path, dataset="demo", extractor="clip", fields=fields) as w:
            w.commit("image", rows(0, 400)[0], features)
        found = [f for f in verify(path) if f.code != "place"]
        assert [(f.level, f.code, f.rows[0]) for f in found] == wanted
        for finding in found:
            assert finding.place == "image-00000.h5" and finding.keys == (rows(finding.rows[0], 1)[0].tobytes().hex(),)
            assert finding.keys[0] in str(finding) and json.loads(json.dumps(finding.as_dict()))["fix"]


def test_threads_change_neither_findings_nor_their_order(three_shards: Path) -> None:
    flip(three_shards / "image-00000.h5", -20)
    (three_shards / "image-00002.h5").unlink()
    one, many = verify(three_shards, workers=1), verify(three_shards, workers=8)
    assert one == many and [f.code for f in one] == ["digest", "missing"]
