from __future__ import annotations

import json
import os
import pickle
import resource
import threading
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import h5py
import numpy as np
import pytest

from cache import (
    Store,
    StoreCorruptError,
    StoreError,
    StoreLookupError,
    StoreNotFoundError,
    StoreVersionError,
    list_stores,
)
from cache.manifest import ShardInfo, load_manifest
from cache.shards import expected_attributes
from cache.stat_cache import sha256_of
from manifests.identity import digest


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(bytes(data))


def age(path: Path) -> None:
    """Make the store's files look as if at rest (only the modification time can be set: the change time is now)."""
    for file in path.iterdir():
        os.utime(file, (1_000_000_000, 1_000_000_000))


def test_what_was_written_is_read(three_shards: Path, rows) -> None:
    store, (keys, features) = Store.open(three_shards), rows(0, 600)
    assert (store.dataset, store.extractor, store.fields["weights"]) == ("demo", "clip", "abc")
    assert store.fingerprint == digest(store.fields) and store.path.name == f"clip-{store.fingerprint[:12]}"
    table = store.tables["image"]
    assert (table.rows, table.dim, table.dtype, len(table.shards)) == (600, 8, "float16", 3)
    assert np.array_equal(store.keys("image"), keys)
    assert np.array_equal(store.load("image"), features) and store.load("image").flags.writeable
    assert store.load("text").dtype == np.float32 and np.array_equal(
        store.load("text"), rows(1000, 40, 6, "float32")[1]
    )
    assert store.execution[0]["settings"] == {"batch_size": 4} and store.execution[0]["rows"] == {
        "image": 600,
        "text": 40,
    }
    assert store.manifest["format"] == "fashion-ntm store" and "tables" in list(store.manifest.keys())
    assert store.nbytes == sum(f.stat().st_size for f in three_shards.iterdir())
    assert [(r.shard, r.rows, r.seconds) for r in store.receipts()][-1] == ("text-00000.h5", 40, 0.25)
    assert "image [600, 8] float16" in repr(store)


def test_gather_keeps_the_order_and_repeats(three_shards: Path, rows) -> None:
    store, features = Store.open(three_shards), rows(0, 600)[1]
    rng = np.random.default_rng(0)
    for pick in (
        rng.integers(0, 600, 3000),
        np.arange(600),
        np.array([599, 0, 300, 304, 305, 0]),
        [3],
        np.array([], int),
    ):
        assert np.array_equal(store.gather("image", pick), features[np.asarray(pick, int)])
    assert np.array_equal(store.gather("image", np.array([1, 2], dtype=np.uint8)), features[[1, 2]])
    assert np.array_equal(store.gather("image", np.arange(600)[::-3]), features[::-3])
    out = np.empty((2, 8), np.float16)
    assert store.gather("image", [5, 500], out=out) is out and np.array_equal(out, features[[5, 500]])
    whole = np.empty((600, 8), np.float16)
    assert store.load("image", out=whole) is whole and np.array_equal(whole, features)


@pytest.mark.parametrize(
    ("dim", "dtype"), [(1, "float16"), (3, "float16"), (5, "float32"), (1000, "float16"), (2048, "float32")]
)
def test_gather_over_shards_of_any_width(path: Path, writer, dim: int, dtype: str) -> None:
    rng = np.random.default_rng(dim)
    features = rng.standard_normal((300, dim)).astype(dtype)
    with writer() as w:
        for start, stop in pairwise((0, 1, 2, 100, 299, 300)):
            w.commit("image", rng.integers(0, 256, (stop - start, 16), dtype=np.uint8), features[start:stop])
    pick = rng.integers(0, 300, 500)
    store = Store.open(path)
    assert np.array_equal(store.gather("image", [299]), features[[299]])  # one shard mapped, the others not yet
    assert np.array_equal(store.gather("image", pick), features[pick])
    assert np.array_equal(store.load("image"), features)


def misaligned(path: Path, writer, shards: int) -> np.ndarray:
    """A store whose shards another program wrote: in one piece, but not at a page. Gives its features."""
    writer().close()
    manifest, parts = load_manifest(path), []
    for n in range(shards):
        keys, features = np.full((3, 16), n, np.uint8), np.arange(6, dtype=np.float16).reshape(3, 2) + 6 * n
        keys[:, 0] = range(3)
        file = path / f"image-{n:05d}.h5"
        with h5py.File(file, "w", libver="latest") as new:
            new.attrs.update(expected_attributes(manifest, "image", n, 3, 2))
            offsets = [
                new.create_dataset(k, data=v).id.get_offset() for k, v in (("features", features), ("keys", keys))
            ]
        assert offsets[0] % 4096
        shard = ShardInfo(file.name, 3, file.stat().st_size, sha256_of(file), *offsets)
        manifest = manifest.with_shard("image", 2, "float16", shard)
        parts.append(features)
    manifest.save(path)
    return np.concatenate(parts)


def test_shards_that_do_not_begin_at_a_page(path: Path, writer, child) -> None:
    features = misaligned(path, writer, 70)
    pick = np.random.default_rng(0).integers(0, 210, 700)

    def read() -> None:
        most = len(os.listdir("/dev/fd")) + 70  # a map holds a file: not all stay
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        for verify in ("digest", "header"):
            store = Store.open(path, verify=verify)
            for _ in range(2):
                assert np.array_equal(store.gather("image", pick), features[pick])
            assert np.array_equal(store.load("image"), features)

    assert child(read) == 0


def test_a_row_that_is_not_there_is_an_error(three_shards: Path) -> None:
    store = Store.open(three_shards)
    for wrong in ([-1], [600], [0, 599, -3], np.array([2**63], dtype=np.uint64)):
        with pytest.raises(StoreLookupError, match="has rows 0 to 599"):
            store.gather("image", wrong)
    for wrong in ([0.5], [[1]], [True]):
        with pytest.raises(StoreError, match="must be integers"):
            store.gather("image", wrong)
    with pytest.raises(StoreLookupError, match="no rows of table 'query'; tables: image, text"):
        store.load("query")
    with pytest.raises(StoreError, match="did you mean"):
        store.load("txt")
    with pytest.raises(StoreError, match="out must be a contiguous float16"):
        store.load("image", out=np.empty((600, 8), np.float32))


def test_find(three_shards: Path, rows) -> None:
    store = Store.open(three_shards)
    keys = rows(590, 20)[0]
    assert store.find("image", keys).tolist() == [*range(590, 600), *[-1] * 10]
    assert store.find("image", np.empty((0, 16), np.uint8)).tolist() == []
    assert store.find("query", keys).tolist() == [-1] * 20 and store.keys("query").shape == (0, 16)
    with pytest.raises(StoreError, match="uint8"):
        store.find("image", keys[:, :8])
    with pytest.raises(ValueError, match="read-only"):
        store.keys("image")[0] = 0


def test_opening_reads_the_manifest_alone(three_shards: Path) -> None:
    for name in ("image-00000.h5", "image-00001.h5", "text-00000.h5", "catalogue.h5", "ledger.jsonl"):
        (three_shards / name).unlink()
    store = Store.open(three_shards)
    assert store.tables["image"].rows == 600 and store.failures() == []
    with pytest.raises(StoreCorruptError, match=r"image-00000.h5 is missing"):
        store.keys("image")
    with pytest.raises(StoreCorruptError, match=r"catalogue.h5 is missing"):
        store.catalogue()
    assert np.isfinite(store.gather("image", [599])).all()  # its shard is whole: it was never asked of the others


@pytest.mark.parametrize("where", ["features", "keys", "header", "padding", "last"])
@pytest.mark.parametrize("aged", [False, True])
def test_a_flipped_bit_is_found_before_a_row_is_read(three_shards: Path, where: str, aged: bool) -> None:
    if aged:
        age(three_shards)
    Store.open(three_shards).load("image")
    shard = load_manifest(three_shards).tables["image"].shards[1]
    at = {
        "features": shard.features_at + 3,
        "keys": shard.keys_at + 70,
        "header": 1,
        "padding": shard.features_at - 1,
        "last": -1,
    }[where]
    flip(three_shards / shard.file, at)
    if aged:
        age(three_shards)
    store = Store.open(three_shards)
    for read in (store.load, store.keys, lambda table: store.gather(table, np.arange(600))):
        with pytest.raises(StoreCorruptError, match=r"image-00001.h5 was changed"):
            read("image")
    assert len(store.gather("image", [0, 599])) == 2


def test_a_stamped_file_is_not_read_again_but_a_rewritten_one_is(three_shards: Path) -> None:
    stamps, shard = three_shards / ".verified.json", three_shards / "text-00000.h5"
    sha256 = sha256_of(shard)

    def stamp() -> None:
        status = shard.stat()
        stamps.write_text(
            json.dumps({shard.name: [sha256, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]})
        )

    os.utime(shard)
    Store.open(three_shards).load("text")
    assert not stamps.exists()  # written just now: its times prove nothing
    flip(shard, -1)
    stamp()  # as if the disk had rotted under a file at rest
    assert len(Store.open(three_shards).load("text")) == 40
    with pytest.raises(StoreCorruptError, match="was changed"):
        Store.open(three_shards, verify="always").load("text")
    status = shard.stat()
    flip(shard, -2)
    os.utime(shard, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(StoreCorruptError, match="was changed"):
        Store.open(three_shards).load("text")
    stamp()
    stamps.write_text(stamps.read_text()[:-5])
    with pytest.raises(StoreCorruptError, match="was changed"):
        Store.open(three_shards).load("text")


def test_a_file_at_rest_is_stamped(three_shards: Path) -> None:
    time.sleep(2.1)
    Store.open(three_shards).load("text")
    assert list(json.loads((three_shards / ".verified.json").read_text())) == ["text-00000.h5"]
    Store.open(three_shards).load("image")
    assert len(json.loads((three_shards / ".verified.json").read_text())) == 4


def test_header_mode_reads_whole_shards(three_shards: Path, rows) -> None:
    assert np.array_equal(Store.open(three_shards, verify="header").load("image"), rows(0, 600)[1])
    with pytest.raises(StoreError, match="use one of digest, always, header"):
        Store.open(three_shards, verify="never")


def test_a_repacked_shard_is_read_through_h5py(three_shards: Path, rows) -> None:
    manifest, name = load_manifest(three_shards), "image-00000.h5"
    packed = three_shards / "packed"
    with h5py.File(three_shards / name) as old, h5py.File(packed, "w") as new:
        new.attrs.update(old.attrs)
        for data in ("features", "keys"):
            new.create_dataset(data, data=old[data][:], chunks=(64, old[data].shape[1]), compression="gzip")
    os.replace(packed, three_shards / name)
    table = manifest.tables["image"]
    size, sha256 = (three_shards / name).stat().st_size, sha256_of(three_shards / name)
    shard = replace(table.shards[0], bytes=size, sha256=sha256, features_at=None, keys_at=None)
    table = replace(table, shards=(shard, *table.shards[1:]))
    replace(manifest, tables={**manifest.tables, "image": table}).save(three_shards)
    keys, features = rows(0, 600)
    pick = np.random.default_rng(0).integers(0, 600, 700)
    for verify in ("digest", "header"):
        store = Store.open(three_shards, verify=verify)
        assert np.array_equal(store.load("image"), features) and np.array_equal(store.keys("image"), keys)
        assert np.array_equal(store.gather("image", pick), features[pick])


def test_no_store(tmp_path: Path, path: Path) -> None:
    with pytest.raises(StoreNotFoundError, match="does not exist") as caught:
        Store.open(path)
    assert isinstance(caught.value, FileNotFoundError) and caught.value.exit_code == 3
    with pytest.raises(FileNotFoundError, match=r"manifest.json is missing"):
        Store.open(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(StoreNotFoundError):
        Store.open(tmp_path / "file")


def test_a_newer_format_is_refused(three_shards: Path) -> None:
    about = json.loads((three_shards / "manifest.json").read_text())
    about.pop("digest")
    about["version"], about["tables"] = 2, "quite different"
    (three_shards / "manifest.json").write_text(json.dumps({**about, "digest": digest(about)}))
    with pytest.raises(
        StoreVersionError, match="is in format 2; this version of the project reads up to format 1: upgrade"
    ):
        Store.open(three_shards)
    (summary,) = list_stores(three_shards.parents[1])
    assert "format 2" in summary.problem and summary.extractor == "clip"


def test_many_shards_need_few_open_files(path: Path, writer, rows, child) -> None:
    with writer() as w:
        for n in range(72):
            w.commit("image", *rows(n * 2, 2))
    store, features = Store.open(path), rows(0, 144)[1]

    def read() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
        for _ in range(3):
            assert np.array_equal(store.gather("image", np.arange(144)), features)

    assert child(read) == 0


def test_threads_forks_and_pickles_read_the_same(three_shards: Path, rows, child) -> None:
    store, features, wrong = Store.open(three_shards), rows(0, 600)[1], []

    def read(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(20):
            pick = rng.integers(0, 600, 256)
            if not np.array_equal(store.gather("image", pick), features[pick]):
                wrong.append(seed)
        if not np.array_equal(store.find("image", store.keys("image")), np.arange(600)):
            wrong.append(seed)

    def in_threads() -> None:
        threads = [threading.Thread(target=read, args=(n,)) for n in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong

    assert child(in_threads) == 0  # forked before the first touch
    in_threads()
    assert child(in_threads) == 0  # and after it
    copy = pickle.loads(pickle.dumps(store))
    assert np.array_equal(copy.load("image"), features) and copy.catalogue() == store.catalogue()


def test_a_reader_sees_its_snapshot_while_a_writer_goes_on(three_shards: Path, writer, rows) -> None:
    store = Store.open(three_shards)
    with writer() as w:
        w.commit("image", *rows(600, 50))
        w.bind({"other": bytes(16)})
        assert len(store.load("image")) == 600
        assert store.catalogue() == {"other": bytes(16)}  # bindings are content-addressed: the newest is right
    assert len(Store.open(three_shards).load("image")) == 650
