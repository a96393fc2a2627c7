from __future__ import annotations

import json
import os
import resource
import threading
from pathlib import Path

import numpy as np
import pytest

from cache import Store, StoreBusyError, StoreCorruptError, StoreError, StoreMismatchError, StoreWriter, verify


def contents(path: Path) -> dict[str, bytes]:
    return {f.name: f.read_bytes() for f in path.iterdir() if f.name != ".writer.lock"}


def test_resuming_asks_only_for_what_is_missing(path: Path, writer, rows) -> None:
    keys, features = rows(0, 100)
    with writer() as w:
        assert w.missing("image", keys).all()
        receipt = w.commit("image", keys[:60], features[:60], seconds=1.5)
        assert (receipt.table, receipt.shard, receipt.rows, receipt.seconds) == ("image", "image-00000.h5", 60, 1.5)
        assert np.flatnonzero(w.missing("image", keys)).tolist() == list(range(60, 100))
    with writer(execution={"batch_size": 8}) as w:
        todo = w.missing("image", keys)
        w.commit("image", keys[todo], features[todo])
        assert not w.missing("image", keys).any() and w.missing("text", keys).all()
    store = Store.open(path)
    assert np.array_equal(store.load("image"), features)
    assert [(e["settings"]["batch_size"], e["rows"]) for e in store.execution] == [
        (4, {"image": 60}),
        (8, {"image": 40}),
    ]
    assert {"project", "python", "numpy", "h5py", "hdf5"} == store.manifest.versions.keys()


def test_opening_a_complete_store_changes_nothing(three_shards: Path, writer, rows) -> None:
    before = contents(three_shards)
    with writer(execution={"batch_size": 99}) as w:
        assert not w.missing("image", rows(0, 600)[0]).any()
        w.bind(Store.open(three_shards).catalogue())
        w.clear("image", "never failed")
    assert contents(three_shards) == before


def test_other_fields_are_named_old_and_new(three_shards: Path, writer, fields) -> None:
    fields["preprocessing"]["size"], fields["pooling"] = 256, "mean"
    del fields["dtype"]
    with pytest.raises(StoreMismatchError) as caught:
        writer(fields=fields)
    assert caught.value.exit_code == 3
    assert caught.value.changed == (
        'dtype: "float16" -> null',
        'pooling: null -> "mean"',
        "preprocessing.size: 224 -> 256",
    )
    assert str(three_shards) in str(caught.value) and "preprocessing.size: 224 -> 256" in str(caught.value)
    with pytest.raises(StoreMismatchError, match='extractor: "clip" -> "siglip"'):
        writer(extractor="siglip")
    with pytest.raises(StoreMismatchError, match='dataset: "demo" -> "shoes"'):
        writer(dataset="shoes")


@pytest.mark.parametrize(("old", "new"), [({"crop": 1}, {"crop": True}), ({"crop": None}, {}), ({"a": 1}, {"a": 1.0})])
def test_fields_that_look_equal_are_told_apart(path: Path, writer, old, new) -> None:
    writer(fields=old).close()
    with pytest.raises(StoreMismatchError, match="of another kind"):
        writer(fields=new)


def test_tuples_and_the_order_of_fields_make_no_difference(tmp_path: Path, writer) -> None:
    path = tmp_path / "other"
    writer(path, fields={"a": (1, 2), "b": {"c": 1, "d": 2}}).close()
    before = Store.open(path).fingerprint
    writer(path, fields={"b": {"d": 2, "c": 1}, "a": [1, 2]}).close()  # no mismatch
    assert Store.open(path).fingerprint == before


def test_one_writer_at_a_time(path: Path, writer, rows, child) -> None:
    with writer() as first:
        with pytest.raises(StoreBusyError, match=f"process {os.getpid()}"):
            writer()

        def use_in_child() -> None:
            with pytest.raises(StoreError, match="belongs to the process that opened it"):
                first.commit("image", *rows(0, 5))
            with pytest.raises(StoreBusyError):
                writer()

        assert child(use_in_child) == 0
        first.commit("image", *rows(0, 5))
    with pytest.raises(StoreError, match="was closed"):
        first.missing("image", rows(0, 5)[0])
    with writer() as second:
        second.commit("image", *rows(5, 5))


def test_the_lock_of_a_dead_writer_is_free(path: Path, writer, rows, child) -> None:
    def die_holding_it() -> None:
        w = writer()
        w.commit("image", *rows(0, 5))
        os.kill(os.getpid(), 9)

    assert child(die_holding_it) == -9
    with writer() as w:
        assert not w.missing("image", rows(0, 5)[0]).any()


def test_threads_commit_one_after_another(path: Path, writer, rows) -> None:
    with writer() as w:
        threads = [threading.Thread(target=lambda n=n: w.commit("image", *rows(n * 10, 10))) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    store = Store.open(path)
    keys, features = rows(0, 80)
    assert np.array_equal(store.gather("image", store.find("image", keys)), features) and verify(path) == []


def test_the_catalogue_holds_any_id(path: Path, writer) -> None:
    ids = ["a b", "a/b\\c", "été 服 👗", "x" * 10_000, "line\nbreak", "nul\0inside", "../up", "\udcff", "'\""]
    catalogue = {image: os.urandom(16) for image in ids}
    with writer() as w:
        assert Store.open(path).catalogue() == {}
        w.bind(catalogue)
        assert Store.open(path).catalogue() == catalogue
        w.bind({})
        assert Store.open(path).catalogue() == {}
        w.bind({"only": bytes(16)})
    with writer() as w:
        for wrong in ({"": bytes(16)}, {"short": bytes(15)}, {"text": "x" * 16}, {3: bytes(16)}):
            with pytest.raises(StoreError, match="catalogue"):
                w.bind(wrong)
    assert Store.open(path).catalogue() == {"only": bytes(16)}


def test_a_lost_catalogue_is_bound_again(three_shards: Path, writer) -> None:
    catalogue = Store.open(three_shards).catalogue()
    (three_shards / "catalogue.h5").unlink()
    with pytest.raises(StoreCorruptError, match="catalogue"):
        Store.open(three_shards).catalogue()
    with writer() as w:
        w.bind(catalogue)
    assert Store.open(three_shards).catalogue() == catalogue


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, writer, three_shards: Path, rows) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match=rf"cannot write {tmp_path}/file/store: Not a directory"):
        writer(tmp_path / "file" / "store")
    if os.path.isdir("/proc/self"):
        with pytest.raises(StoreError, match="cannot write /proc/self/store"):
            writer(Path("/proc/self/store"))
    if os.geteuid() == 0:
        return  # permissions do not bind root
    three_shards.chmod(0o555)
    try:
        with pytest.raises(StoreError, match="Permission denied"):
            writer()
        assert len(Store.open(three_shards).load("image")) == 600
    finally:
        three_shards.chmod(0o755)


@pytest.mark.parametrize("room", [1000, 20_000])
def test_a_full_disk_loses_nothing_committed(path: Path, writer, rows, child, room: int) -> None:
    """A limit on the size of files stands in for a full disk: the same writes fail with the same kind of error."""
    with writer() as w:
        w.commit("image", *rows(0, 10))

    def fill_up() -> None:
        with writer() as w:
            before = contents(path).keys()
            soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
            with pytest.raises(StoreError, match=r"what was committed is whole \(10 rows of image\); make room"):
                w.commit("image", *rows(10, 2000))
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            assert contents(path).keys() == before
            assert w.missing("image", rows(0, 2010)[0]).sum() == 2000
            w.commit("image", *rows(10, 2000))

    assert child(fill_up) == 0
    assert np.array_equal(Store.open(path).load("image"), rows(0, 2010)[1]) and verify(path) == []


def test_failures_last_until_the_item_succeeds(path: Path, writer, rows) -> None:
    keys, features = rows(0, 3)
    with writer() as w:
        w.bind({"red": bytes(16), "blue": keys[1].tobytes()})
        w.fail("image", "red", "decode", "truncated JPEG")
        w.fail("image", "blue", "decode", "truncated JPEG")
        w.fail("image", "blue", "decode", "truncated JPEG")
        w.fail("query", "red: make it longer", "encode", "NaN", key=keys[2].tobytes())
        w.fail("text", "make it longer", "encode", "too long")
        assert len(w.failures()) == 4
    assert len((path / "ledger.jsonl").read_text().splitlines()) == 4  # the repeated one is not written again
    assert {(f.table, f.item, f.stage, f.reason) for f in Store.open(path).failures()} == {
        ("image", "red", "decode", "truncated JPEG"),
        ("image", "blue", "decode", "truncated JPEG"),
        ("query", "red: make it longer", "encode", "NaN"),
        ("text", "make it longer", "encode", "too long"),
    }
    with writer() as w:
        w.commit("image", keys[1:2], features[1:2])  # the row that blue is bound to
        w.commit("query", keys[2:], features[2:])  # the key that failed
        w.clear("text", "make it longer")
        assert [f.item for f in w.failures()] == ["red"]
        w.fail("image", "red", "decode", "another reason")
        with pytest.raises(StoreError, match="must be 16 bytes"):
            w.fail("image", "x", "decode", "y", key=b"short")
    (failure,) = Store.open(path).failures()
    assert (failure.item, failure.reason) == ("red", "another reason")


def test_many_failures_are_as_one_after_another(tmp_path: Path, writer) -> None:
    failures = [(f"image {n % 40}", "decode", f"reason {n // 20}", None if n % 3 else bytes(16)) for n in range(60)]
    with writer(tmp_path / "one") as one, writer(tmp_path / "many") as many:
        for failure in failures:
            one.fail("image", *failure)
        many.fail_many("image", failures)
        many.fail_many("image", failures)  # said before: nothing is written
        many.fail_many("image", [])
        assert {(f.item, f.reason, f.key) for f in many.failures()} == {
            (f.item, f.reason, f.key) for f in one.failures()
        }
        with pytest.raises(StoreError, match="must be 16 bytes"):
            many.fail_many("image", [("good", "decode", "x", None), ("bad", "decode", "x", b"short")])
    found = Store.open(tmp_path / "many").failures()
    assert len(found) == 40 and len((tmp_path / "many" / "ledger.jsonl").read_text().splitlines()) == 40


def test_a_fixed_image_ends_its_failure_under_its_new_key(path: Path, writer, rows) -> None:
    keys, features = rows(0, 2)
    with writer() as w:
        w.bind({"red": keys[0].tobytes()})
        w.fail("image", "red", "decode", "truncated JPEG", key=keys[0].tobytes())
        w.commit("image", keys[1:], features[1:])
        assert len(w.failures()) == 1
        w.bind({"red": keys[1].tobytes()})
        assert w.failures() == []


def test_a_damaged_manifest_stops_the_writer_and_its_shards_can_be_taken_back(three_shards: Path, writer, rows) -> None:
    manifest = three_shards / "manifest.json"
    about = json.loads(manifest.read_text())
    about["tables"]["image"]["shards"][0]["rows"] -= 1
    manifest.write_text(json.dumps(about))
    with pytest.raises(StoreCorruptError, match="digest does not match"):
        writer()
    manifest.unlink()
    with writer() as w:
        assert not w.missing("image", rows(0, 600)[0]).any()
    assert np.array_equal(Store.open(three_shards).load("image"), rows(0, 600)[1])


def test_arguments_without_a_json_form(path: Path, writer) -> None:
    for wrong in ({"fields": {"a": np.float32(1)}}, {"execution": {"a": path}}, {"dataset": "../x"}):
        with pytest.raises(StoreError):
            writer(**wrong)
    assert not path.exists()


def test_the_writer_is_public() -> None:
    assert StoreWriter.__module__ == "cache.writer"
