"""What a spec needs of its stores, on real images and a small CLIP."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from cache import Store
from manifests.schema import Component, Dataset, RunSpec
from pipeline.core.workspace import Workspace
from pipeline.extraction.extractors.base import ExtractorOptions
from pipeline.extraction.tolerance import COMPUTED, STORED, tolerance, tolerance_of
from pipeline.jobs.stage1 import extract_spec
from pipeline.stores.collect import SharedStoreError, collect_specs, collect_store, remove_superseded, superseded
from pipeline.stores.explain import explain
from pipeline.stores.reextract import reextract
from pipeline.stores.wanted import OtherStoreError, request_of
from tests.pipeline.extraction.conftest import build_dataset, picture, save_clip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("collect")
    save_clip(root / "model")
    data = build_dataset(root / "images")
    extract_spec(spec_of(root), data, Workspace(root / "out"), "cpu", progress="silent", shard_rows=5)
    return root


@pytest.fixture
def place(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made, tmp_path / "place")


def spec_of(root: Path, name: str = "first", **options: Any) -> RunSpec:
    extractor = Component(name="clip", model=str(root / "model"), **options)
    return RunSpec(name=name, dataset=Component(name="jsonl"), extractor=extractor)


def request(root: Path, data: Dataset | None = None, name: str = "first", **options: Any) -> Any:
    return request_of(spec_of(root, name, **options), data or build_dataset(root / "images"), Workspace(root / "out"))


def test_an_image_that_cannot_be_read_now_keeps_its_rows(place: Path) -> None:
    for n in (2, 5):
        (place / "images" / f"i00{n}.jpg").rename(place / f"i00{n}.away")
    asked = request_of(spec_of(place), _without_files(place), Workspace(place / "out"))
    assert set(asked.backbone.unreadable) == {"i002", "i005"}
    for done in collect_specs([asked], dry_run=False):
        assert done.rows_dropped == 0
    for n in (2, 5):
        (place / f"i00{n}.away").rename(place / "images" / f"i00{n}.jpg")
    again = extract_spec(
        spec_of(place), build_dataset(place / "images"), Workspace(place / "out"), "cpu", progress="silent"
    )
    assert again.extraction.extracted == 0 and sum(again.composed.written.values()) == 0  # type: ignore[union-attr]


def _without_files(place: Path) -> Dataset:
    """``build_dataset`` draws missing files again: take it from a copy, and point it at the folder as it is."""
    copy = build_dataset(place / "copy")
    return copy.model_copy(update={"images_root": place / "images"})


def test_rows_of_a_removed_image_go_from_both_stores_and_the_others_stay_exact(place: Path) -> None:
    data, workspace = build_dataset(place / "images"), Workspace(place / "out")
    gone = "i003"
    sessions = tuple(s for s in data.sessions if gone not in (*(t.reference for t in s.turns), s.target))
    images = {i: image for i, image in data.images.items() if i != gone}
    less = data.model_copy(update={"images": images, "sessions": sessions})
    asked = request(place, less)
    before = [Store.open(w.path) for w in asked.stores]
    rows = [{t: dict(zip(map(bytes, s.keys(t)), s.load(t).copy(), strict=True)) for t in s.tables} for s in before]
    planned = collect_specs([asked], dry_run=True)
    done = collect_specs([asked], dry_run=False)
    assert [d.dropped for d in planned] == [d.dropped for d in done]
    assert done[0].dropped["image"] == 1 and done[0].dropped["text"] > 0 and done[1].dropped["target"] == 1
    for wanted, old in zip(asked.stores, rows, strict=True):
        store = Store.open(wanted.path)
        assert gone not in store.catalogue()
        for table, items in wanted.tables.items():
            found = dict(zip(map(bytes, store.keys(table)), store.load(table), strict=True))
            assert found.keys() == items.keys() and all(
                f.tobytes() == old[table][k].tobytes() for k, f in found.items()
            )
    report = extract_spec(spec_of(place), less, workspace, "cpu", progress="silent")
    assert report.extraction.extracted == 0


def test_a_changed_image_is_one_row_and_its_old_one_is_collected(place: Path) -> None:
    picture(99).save(place / "images" / "i001.jpg")
    data, workspace = build_dataset(place / "images"), Workspace(place / "out")
    asked = request(place)
    row = next(r for r in explain(Store.open(asked.backbone.path), asked).rows if r.table == "image")
    assert (row.new, row.changed, row.removed, row.examples) == (0, 1, 1, ("i001",))
    report = extract_spec(spec_of(place), data, workspace, "cpu", progress="silent").extraction
    assert report.extracted == 1
    dropped = collect_specs([request(place)], dry_run=False)
    assert dropped[0].dropped == {"image": 1, "text": 0} and dropped[1].dropped["target"] == 1


def test_a_store_of_another_spec_is_refused(place: Path) -> None:
    store = request(place).backbone.path
    with pytest.raises(OtherStoreError, match="cache explain"):
        collect_store(store, [request(place, normalise=False)], dry_run=True)
    with pytest.raises(SharedStoreError, match="'first'"):
        collect_store(store, [request(place, name="second")], dry_run=True)
    assert collect_store(store, [request(place, name="second")], dry_run=True, alone=True).rows_dropped == 0


def test_the_refusal_names_the_spec_file_and_a_superseded_store_goes(place: Path) -> None:
    data, workspace = build_dataset(place / "images"), Workspace(place / "out")
    file = place / "tuned.toml"
    file.write_text("")
    tuned = spec_of(place, "tuned").model_copy(update={"given": f"{file} --data x"})
    extract_spec(tuned, data, workspace, "cpu", progress="silent")
    with pytest.raises(SharedStoreError, match=re.escape(f"--keep-for {file}")):
        collect_specs([request(place)], dry_run=True)
    file.unlink()
    with pytest.raises(SharedStoreError, match=r"tuned.toml is no longer there"):
        collect_specs([request(place)], dry_run=True)
    assert superseded(workspace, data.name) == []
    old = {request(place).backbone.path, request(place).composed.path}
    for name in ("first", "tuned"):
        extract_spec(spec_of(place, name, normalise=False), data, workspace, "cpu", progress="silent")
        (path,) = (p for p in (place / "out/extracted").glob(f"{name}-*.json") if _names(p, old))
        path.unlink()  # as if the spec had been changed in place
    planned = remove_superseded(workspace, data.name, dry_run=True)
    assert {Path(found["path"]) for found in planned} == old and all(path.is_dir() for path in old)
    assert remove_superseded(workspace, data.name, dry_run=False) == planned
    assert not any(path.exists() for path in old) and not list(workspace.out.glob(".removed*"))
    assert request(place, normalise=False).backbone.path.is_dir()


def _names(record: Path, stores: set[Path]) -> bool:
    return any(path.name in record.read_text() for path in stores)


# ---- computing again


def test_rows_come_again_within_the_tolerance_that_was_recorded(place: Path) -> None:
    asked = request(place)
    for wanted in asked.stores:
        store = Store.open(wanted.path)
        found = reextract(store, asked, 6, seed=1)
        assert found.matches and {t.table for t in found.tables} == set(store.tables) and found.left_out == 0
        assert all(t.sampled == 6 and t.top10 == 1.0 and t.max_abs <= t.tolerance for t in found.tables)
    backbone = Store.open(asked.backbone.path)
    assert backbone.execution[-1]["settings"]["tolerance"] == tolerance("float32", "float16") == tolerance_of(backbone)
    names = {row.key for row in reextract(backbone, asked, 6, seed=1).tables[0].worst}
    assert names == set()
    one, two = (reextract(backbone, asked, 3, seed=s, batch_size=1).as_dict() for s in (1, 1))
    assert one == two


def test_an_image_that_is_gone_cannot_be_computed_again_and_is_named(place: Path) -> None:
    asked = request(place)
    (place / "images" / "i004.jpg").write_bytes(b"no image at all")  # after its key was taken
    found = reextract(Store.open(asked.backbone.path), asked, 12)
    (row,) = next(t for t in found.tables if t.table == "image").worst
    assert row.name == "i004" and "cannot be computed" in row.problem and not found.matches and "i004" in found.text()


def test_every_dtype_has_a_tolerance_and_the_coarser_counts() -> None:
    options = ExtractorOptions.model_fields
    assert set(COMPUTED) == set(options["dtype"].annotation.__args__)  # type: ignore[union-attr]
    assert set(STORED) == set(options["store_dtype"].annotation.__args__)  # type: ignore[union-attr]
    assert (
        tolerance("float32", "float16") == STORED["float16"]
        and tolerance("bfloat16", "float16") == COMPUTED["bfloat16"]
    )
