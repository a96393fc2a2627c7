"""Exports: every row and name in one order, readable by the formats' own libraries, in bounded memory."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from cache import Store, StoreCorruptError, StoreWriter
from manifests.schema import Dataset
from pipeline.composition.compose import compose
from pipeline.composition.composers.fusion import Fusion, FusionOptions
from pipeline.extraction.arrays import Lookup, fit, open_arrays
from pipeline.stores import exports
from pipeline.stores.exports import FORMATS, ExportError, export
from tests.worlds import DIM, world, write_backbone


@pytest.fixture
def data() -> Dataset:
    return world()


@pytest.fixture
def store(tmp_path: Path, data: Dataset) -> Store:
    """Composed query and target rows."""
    backbone = write_backbone(tmp_path / "stores" / "world" / "tiny", data)
    return Store.open(compose(backbone, data, Fusion(FusionOptions(), DIM, DIM).eval(), tmp_path / "stores").path)


def read(folder: Path, table: str, form: str) -> tuple[np.ndarray, np.ndarray | None]:
    """(features, keys) by the library of the format."""
    file = folder / f"{table}.{form}"
    if form == "npy":
        return np.load(file), None
    if form == "safetensors":
        with safe_open(str(file), framework="np") as held:
            return held.get_tensor("features"), held.get_tensor("keys")
    if form == "faiss":
        index = pytest.importorskip("faiss", reason="no faiss: pip install 'fashion-ntm[faiss]'").read_index(str(file))
        return index.reconstruct_n(0, index.ntotal), None
    parquet = pytest.importorskip("pyarrow.parquet")
    found = parquet.read_table(file)
    assert len(set(found.column("id").to_pylist())) == len(found)
    rows = np.stack([np.asarray(row.values) for row in found.column("features")])
    return rows, np.stack([np.frombuffer(k.as_py(), np.uint8) for k in found.column("key")])


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("block", [64, 32 << 20])
def test_rows_keys_and_names_lie_in_one_order(
    store: Store, data: Dataset, tmp_path: Path, form: str, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exports, "BLOCK_BYTES", block)  # one row at a time, or all at once
    done = export(store, tmp_path / "out", form, data)  # type: ignore[arg-type]
    about = json.loads((tmp_path / "out" / "features.json").read_text())
    assert about["fingerprint"] == store.fingerprint and about["fields"] == store.fields
    assert about["tables"] == done.tables and set(done.tables) == {"query", "target"}
    for table in store.tables:
        features, keys = read(tmp_path / "out", table, form)
        assert features.tobytes() == store.load(table).tobytes() and features.dtype.name == store.tables[table].dtype
        assert keys is None or np.array_equal(keys, store.keys(table))
        names = [json.loads(line) for line in (tmp_path / "out" / f"{table}.ids.jsonl").read_text().splitlines()]
        assert [n["key"] for n in names] == [k.tobytes().hex() for k in store.keys(table)]
        if table == "target":
            assert {i for n in names for i in n["ids"]} == set(data.images)
            assert all(store.catalogue()[i].hex() == n["key"] for n in names for i in n["ids"])
        else:
            turns = {(s, t) for n in names for s, t in n["turns"]}
            assert turns == {(s.id, t) for s in data.sessions for t in range(3)}


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("form", ["npy", "safetensors"])
def test_an_export_is_found_again_by_name_or_by_key_alone(
    store: Store, data: Dataset, tmp_path: Path, form: str, named: bool
) -> None:
    export(store, tmp_path / "out", form, data if named else None)  # type: ignore[arg-type]
    folder = open_arrays(tmp_path / "out")
    assert not fit(folder, data, True).lines()
    lookup, queries = Lookup(folder, data), store.load("query")
    for image, text in data.queries():
        assert np.array_equal(folder["query"].features[lookup.pair(image, text)], queries[lookup.pair(image, text)])


def test_a_folder_that_is_not_empty_and_a_missing_library_are_said(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    for folder in (tmp_path / "full", tmp_path / "full" / "notes.txt"):
        with pytest.raises(ExportError, match="not an empty folder"):
            export(store, folder, "npy")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ExportError, match=r"fashion-ntm\[parquet\]"):
        export(store, tmp_path / "out", "parquet")
    assert not (tmp_path / "out").exists()


def test_a_damaged_shard_is_not_exported(store: Store, tmp_path: Path) -> None:
    file = store.path / "query-00000.h5"
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(bytes(content))
    with pytest.raises(StoreCorruptError, match=r"query-00000\.h5"):
        export(Store.open(store.path), tmp_path / "out", "npy")
    assert not (tmp_path / "out" / "features.json").exists()


@pytest.mark.slow  # 64 MB
def test_memory_is_bounded_by_a_block(tmp_path: Path) -> None:
    import tracemalloc

    rng = np.random.default_rng(0)
    with StoreWriter(tmp_path / "big", dataset="d", extractor="e", fields={"a": 1}) as w:
        for _ in range(8):
            keys = rng.integers(0, 256, (4096, 16), dtype=np.uint8)
            w.commit("target", keys, rng.standard_normal((4096, 512)).astype(np.float32))
    store = Store.open(tmp_path / "big")
    store.keys("target")
    tracemalloc.start()
    try:
        export(store, tmp_path / "out", "npy")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert store.load("target").nbytes == 64 << 20 and peak < exports.BLOCK_BYTES + (8 << 20)
