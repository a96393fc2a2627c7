"""Folders that are full, may not be written, or hold what does not belong: merged, half copied, renamed stores."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from cache import Store, StoreCorruptError, StoreError, StoreMismatchError, StoreWriter, store_path, verify, write_shard
from cache.layout import is_temporary

NOBODY = 65534


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 440 kB, where this process may mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=440k", "tmpfs", str(place)], capture_output=True)
    if made.returncode:
        pytest.skip("this process may not mount a file system")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_a_disk_that_is_really_full(small_disk: Path, writer, rows) -> None:
    """Filled to the last block between commits, by shards, by failures, and by a worker; then room is made."""
    path, filler = small_disk / "store", small_disk / "filler"
    keys = rows(0, 4000)[0]
    features = np.random.default_rng(0).standard_normal((4000, 64)).astype(np.float16)
    with writer(path) as w:
        w.commit("image", keys[:1000], features[:1000])
        for use in (
            lambda: w.commit("image", keys[1000:], features[1000:]),
            lambda: w.adopt(write_shard(path, "image", keys[1000:], features[1000:])),
            lambda: w.bind({f"image {n}": bytes(16) for n in range(40_000)}),
        ):
            with pytest.raises(StoreError, match="No space left on device"):
                use()
            assert not any(is_temporary(name) for name in os.listdir(path))
            assert np.array_equal(Store.open(path).load("image"), features[:1000])
        with open(filler, "wb", buffering=0) as handle:
            try:
                while True:
                    handle.write(bytes(4096))
            except OSError:
                pass
        for use in (
            lambda: w.commit("image", keys[1000:1001], features[1000:1001]),
            lambda: w.bind({"x": bytes(16)}),
        ):
            with pytest.raises(StoreError, match=r"what was committed is whole \(1000 rows of image\); make room"):
                use()
        filler.unlink()
        assert w.missing("image", keys).sum() == 3000
        w.commit("image", keys[1000:2000], features[1000:2000])
        w.fail("image", "late", "decode", "no JPEG")
    assert np.array_equal(Store.open(path).load("image"), features[:2000])
    assert {f.code for f in verify(path)} <= {"place"}


def test_a_folder_that_may_only_be_read(three_shards: Path, writer, rows, child: Callable) -> None:
    """As a user without rights, in a process of its own where the tests run as root."""
    for place in (three_shards, *three_shards.parents):
        if os.geteuid() == 0 and not place.stat().st_mode & 0o001:
            if place.owner() != "root" or place == Path("/"):
                pytest.skip("the test's folder is closed to other users")
            place.chmod(place.stat().st_mode | 0o055)
    (three_shards / ".writer.lock").chmod(0o444)
    three_shards.chmod(0o555)

    def without_rights() -> None:
        if os.geteuid() == 0:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
        store = Store.open(three_shards)
        assert np.array_equal(store.load("image"), rows(0, 600)[1]) and len(store.catalogue()) == 20
        assert np.array_equal(store.gather("image", np.arange(600)), rows(0, 600)[1])
        assert verify(three_shards) == []
        for use in (writer, lambda: write_shard(three_shards, "image", *rows(900, 3))):
            with pytest.raises(StoreError, match=r"cannot write .*: Permission denied"):
                use()

    try:
        assert child(without_rights) == 0
    finally:
        three_shards.chmod(0o755)
        (three_shards / ".writer.lock").chmod(0o644)


def test_a_store_copied_half(three_shards: Path, writer, rows) -> None:
    (three_shards / "image-00001.h5").unlink()
    (three_shards / "image-00002.h5").write_bytes((three_shards / "image-00002.h5").read_bytes()[:5000])
    store = Store.open(three_shards)
    with pytest.raises(StoreCorruptError, match=r"image-00001\.h5 is missing\. None of its rows are used"):
        store.load("image")
    with pytest.raises(StoreCorruptError, match=r"image-00002\.h5 has 5000 bytes"):
        store.gather("image", np.array([400]))
    assert np.array_equal(store.gather("image", np.arange(300)), rows(0, 300)[1])  # what is whole is read
    assert {f.place: f.code for f in verify(three_shards)} == {"image-00001.h5": "missing", "image-00002.h5": "size"}
    (three_shards / "manifest.json").unlink()  # copied without its manifest
    shutil.copy(three_shards / "image-00000.h5", three_shards / "image-00001.h5")
    with pytest.raises(StoreError, match=r"manifest\.json is missing"):
        Store.open(three_shards)
    with writer() as w:
        assert (~w.missing("image", rows(0, 600)[0])).sum() == 300  # the one whole shard, once
    assert sorted(f.name[:14] for f in three_shards.glob("*.rejected")) == ["image-00001.h5", "image-00002.h5"]


def test_two_stores_merged_by_hand(three_shards: Path, tmp_path: Path, writer, rows) -> None:
    """Files of another model's store, or of another run of the same, copied over and beside."""
    other = store_path(tmp_path / "stores", "demo", "clip", {"weights": "other"})
    with writer(other, fields={"weights": "other"}) as w:
        for start in (0, 300, 305, 600):
            w.commit("image", *rows(start, 5))
        w.bind({"other": bytes(16)})
    shutil.copy(other / "image-00003.h5", three_shards / "image-00003.h5")  # beside
    with open(three_shards / "ledger.jsonl", "ab") as handle:
        handle.write((other / "ledger.jsonl").read_bytes())  # its receipt too
    with writer() as w:
        assert w.missing("image", rows(600, 5)[0]).all()
    assert [f.name[:14] for f in three_shards.glob("*.rejected")] == ["image-00003.h5"]
    shutil.copy(other / "image-00000.h5", three_shards / "image-00001.h5")  # over
    with pytest.raises(StoreCorruptError, match=r"image-00001\.h5 has \d+ bytes|was changed"):
        Store.open(three_shards).load("image")
    shutil.copy(other / "catalogue.h5", three_shards / "catalogue.h5")
    with pytest.raises(StoreCorruptError, match="catalogue"):
        Store.open(three_shards).catalogue()
    shutil.copy(other / "manifest.json", three_shards / "manifest.json")
    with pytest.raises(StoreMismatchError, match='weights: "other" -> "abc"'):
        writer()


def test_a_shard_renamed_to_another_place(three_shards: Path, writer) -> None:
    (three_shards / "image-00002.h5").rename(three_shards / "image-00005.h5")
    with pytest.raises(StoreCorruptError, match=r"image-00002\.h5 is missing"):
        Store.open(three_shards).load("image")
    with writer():
        assert [f.name[:14] for f in three_shards.glob("*.rejected")] == ["image-00005.h5"]


@pytest.mark.parametrize(
    "file",
    ["../image-00000.h5", "/etc/passwd", "image-00000.h5/../../x", "a/image-00000.h5", "image-00000.h5\0", "..", ""],
)
def test_no_path_climbs_out_of_the_store(three_shards: Path, file: str) -> None:
    from manifests.identity import digest

    about = json.loads((three_shards / "manifest.json").read_text())
    about["tables"]["image"]["shards"][0]["file"] = file
    del about["digest"]
    (three_shards / "manifest.json").write_text(json.dumps({**about, "digest": digest(about)}))
    with pytest.raises(StoreCorruptError, match="was edited or damaged"):
        Store.open(three_shards)


@pytest.mark.parametrize("name", ["..", "../x", "a/b", "", ".hidden", "x" * 101, "a\0b", "été", "a b"])
def test_names_that_would_climb_out_are_refused(tmp_path: Path, name: str) -> None:
    for names in ({"dataset": name, "extractor": "clip"}, {"dataset": "demo", "extractor": name}):
        with pytest.raises(StoreError, match="becomes a folder name"):
            StoreWriter(tmp_path / "store", **names, fields={})
        with pytest.raises(StoreError, match="becomes a folder name"):
            store_path(tmp_path, *names.values(), {})
    assert list(tmp_path.iterdir()) == []


def test_failures_of_any_name(path: Path, writer) -> None:
    items = ["a b", "a/b\\c", "été 服 👗", "x" * 10_000, "line\nbreak", "nul\0inside", "../up", "\udcff", "'\"", ""]
    with writer() as w:
        for item in items:
            w.fail("image", item, "decode", f"because {item}")
    assert [(f.item, f.reason) for f in Store.open(path).failures()] == [(i, f"because {i}") for i in items]
    assert verify(path) == []
