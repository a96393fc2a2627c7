"""Extraction end to end on real models and files: exact counts, and what makes a row anew."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as Pillow
from safetensors.torch import load_file, save_file

from cache import Store
from manifests.identity import caption_key, image_key, pair_key, stack_keys, text_key
from manifests.schema import Dataset, Image
from pipeline.extraction.extractors.base import Extractor
from pipeline.extraction.extractors.clip import ClipExtractor
from pipeline.extraction.images import decode

from .conftest import build_dataset, picture, save_clip
from .helpers import JointExtractor, rows_by_key, run, snapshot, texts_of, tiny

Load = Callable[..., Extractor]


def test_every_row_once_and_nothing_the_second_time(load: Load, clip_folder: Path, tmp_path: Path) -> None:
    data = build_dataset(tmp_path / "images", images=20, sessions=15)
    shutil.copy(tmp_path / "images/i001.jpg", tmp_path / "images/i002.jpg")
    extractor, stores = load("clip", clip_folder), tmp_path / "stores"
    report = run(data, extractor, stores)
    texts = texts_of(data)
    assert extractor.calls == 19 + len(texts)  # unique images + unique texts, exactly
    assert (report.tables["image"].requests, report.tables["image"].unique, report.tables["image"].extracted) == (
        20,
        19,
        19,
    )
    assert report.tables["text"].requests == sum(len(s.turns) + 1 for s in data.sessions)
    assert report.extracted == 19 + len(texts) and report.reused == report.failed == 0
    store = Store.open(report.path)
    assert store.fields == json.loads(json.dumps(extractor.semantic())) and store.nbytes == report.bytes
    assert len(store.manifest.tables["image"].shards) == 3
    # rows are in plan order, and are the model's own for that item alone
    assert [k.tobytes() for k in store.keys("text")] == [text_key(t) for t in texts]
    alone = np.concatenate([extractor.encode_texts([t]) for t in texts])
    assert np.abs(store.load("text") - alone).max() <= 1e-5
    pictures = [decode((tmp_path / f"images/{i}.jpg").read_bytes()) for i in data.images]
    rows = store.gather("image", store.find("image", stack_keys(store.catalogue()[i] for i in data.images)))
    assert np.abs(rows - extractor.encode_images(pictures)).max() <= 1e-5

    before, again = snapshot(report.path), load("clip", clip_folder)
    second = run(data, again, stores)
    assert again.calls == 0 and second.extracted == 0 and second.reused == report.extracted
    assert "up to date: fingerprint matches" in second.text() and "nothing was extracted" in second.text()
    assert {
        n: b for n, (_, b) in snapshot(report.path).items() if n.endswith((".h5", ".json", ".jsonl")) and n[0] != "."
    } == {n: b for n, (_, b) in before.items() if n.endswith((".h5", ".json", ".jsonl")) and n[0] != "."}
    json.dumps([report.as_dict(), second.as_dict()], allow_nan=False)
    assert "20 requested, 19 unique: 19 extracted" in report.text()


def test_captions_in_place_of_images(load: Load, bert_folder: Path, tmp_path: Path) -> None:
    data = build_dataset(None)
    images = data.images | {"i001": Image(id="i001"), "i002": Image(id="i002", caption=data.images["i003"].caption)}
    data = data.model_copy(update={"images": images})
    extractor = load("caption", bert_folder)
    report = run(data, extractor, tmp_path)
    store = Store.open(report.path)
    assert extractor.calls == 10 + len(texts_of(data)) == report.extracted
    (failure,) = store.failures()
    assert (failure.table, failure.item, failure.stage) == ("image", "i001", "caption")
    assert store.catalogue()["i002"] == store.catalogue()["i003"] == caption_key(data.images["i003"].caption or "")
    assert "i001" not in store.catalogue() and report.failed == 1
    fixed = data.model_copy(update={"images": images | {"i001": Image(id="i001", caption="a blue top")}})
    assert run(fixed, extractor, tmp_path).extracted == 1
    assert Store.open(report.path).failures() == []


def test_batch_shard_workers_and_paths_leave_store_and_rows_alone(
    load: Load, clip_folder: Path, tmp_path: Path
) -> None:
    data = build_dataset(tmp_path / "images", sessions=12)
    first = run(data, load("clip", clip_folder), tmp_path / "a", batch_size=1, shard_rows=1000, workers=0)
    moved = data.model_copy(update={"images_root": Path(shutil.copytree(tmp_path / "images", tmp_path / "moved"))})
    model = shutil.copytree(clip_folder, tmp_path / "model")
    other = run(moved, load("clip", model), tmp_path / "b", batch_size=16, shard_rows=5, workers=3)
    assert first.path.name == other.path.name and first.fingerprint == other.fingerprint
    for table in ("image", "text"):
        one, two = (rows_by_key(Store.open(r.path), table) for r in (first, other))
        assert one.keys() == two.keys()
        assert max(np.abs(one[k] - two[k]).max() for k in one) <= 1e-5
    settings = Store.open(other.path).execution[-1]["settings"]
    assert settings["batch_size"] == 16 and settings["device"] == "cpu"
    assert [k.tobytes() for k in Store.open(first.path).keys("text")] == [
        k.tobytes() for k in Store.open(other.path).keys("text")
    ]


def test_other_weights_are_another_store(load: Load, clip_folder: Path, dataset: Dataset, tmp_path: Path) -> None:
    first = run(dataset, load("clip", clip_folder), tmp_path / "stores")
    second = run(dataset, load("clip", save_clip(tmp_path / "other", seed=9)), tmp_path / "stores")
    assert first.path != second.path and second.reused == 0


def test_a_changed_image_makes_only_its_own_row(
    load: Load, clip_folder: Path, dataset: Dataset, tmp_path: Path
) -> None:
    extractor, stores = load("clip", clip_folder), tmp_path / "stores"
    first = run(dataset, extractor, stores)
    old = Store.open(first.path).catalogue()
    picture(777).save(tmp_path / "images/i005.jpg")
    os.utime(tmp_path / "images/i006.jpg")  # touched, not changed
    calls, report = extractor.calls, run(dataset, extractor, stores)
    assert extractor.calls == calls + 1 and report.extracted == 1 and report.path == first.path
    new = Store.open(report.path).catalogue()
    assert {i for i in new if new[i] != old[i]} == {"i005"}
    assert new["i005"] == image_key((tmp_path / "images/i005.jpg").read_bytes())


def test_a_joint_model_sees_every_unique_pair_once(clip_folder: Path, dataset: Dataset, tmp_path: Path) -> None:
    options = JointExtractor.Options(model=str(clip_folder), store_dtype="float32")
    extractor = JointExtractor(options, torch.device("cpu"))
    (tmp_path / "images/i000.jpg").write_bytes(b"no image")
    report = run(dataset, extractor, tmp_path / "stores")
    store, pairs = Store.open(report.path), dict.fromkeys(dataset.queries())
    bad = {(i, t) for i, t in pairs if i == "i000"}
    assert bad and extractor.calls == 11 + len(pairs) - len(bad)
    assert set(store.tables) == {"query", "target"}
    assert {f.item for f in store.failures() if f.table == "query"} == {f"{i}: {t}" for i, t in bad}
    i, t = next(p for p in pairs if p not in bad)
    row = store.gather("query", store.find("query", stack_keys([pair_key(store.catalogue()[i], text_key(t))])))
    image = decode((tmp_path / f"images/{i}.jpg").read_bytes())
    np.testing.assert_allclose(row, extractor.encode_pairs([image], [t]), atol=1e-5)
    picture(5).save(tmp_path / "images/i000.jpg")
    calls = extractor.calls
    run(dataset, extractor, tmp_path / "stores")
    assert extractor.calls == calls + 1 + len(bad) and Store.open(report.path).failures() == []


def test_real_photographs(load: Load, clip_folder: Path, shared_data: Path, tmp_path: Path) -> None:
    photos = sorted((shared_data / "products/images").glob("*.jpg"))[:48]
    if not photos:
        pytest.skip(f"no photographs in {shared_data / 'products/images'}")
    data = build_dataset(None, images=len(photos))
    images = {i: Image(id=i, file=p.name) for i, p in zip(data.images, photos, strict=True)}
    data = data.model_copy(update={"images": images, "images_root": photos[0].parent})
    extractor = load("clip", clip_folder)
    report = run(data, extractor, tmp_path, batch_size=16, shard_rows=32)
    unique = len({p.read_bytes() for p in photos})
    assert report.tables["image"].extracted == unique and report.failed == 0
    store = Store.open(report.path)
    rows = store.gather("image", store.find("image", stack_keys(store.catalogue()[i] for i in images)))
    with Pillow.open(photos[7]) as photo:
        np.testing.assert_allclose(rows[7], extractor.encode_images([photo.convert("RGB")])[0], atol=1e-5)


def test_load_then_save_of_weights_is_what_the_tests_change(clip_folder: Path, tmp_path: Path) -> None:
    """The digest is of the tensors: rewritten with other metadata, the fingerprint stays."""
    folder = shutil.copytree(clip_folder, tmp_path / "rewritten")
    save_file(
        load_file(folder / "model.safetensors"), folder / "model.safetensors", metadata={"format": "pt", "note": "x"}
    )
    assert (folder / "model.safetensors").read_bytes() != (clip_folder / "model.safetensors").read_bytes()
    assert tiny(ClipExtractor, folder).semantic() == tiny(ClipExtractor, clip_folder).semantic()
