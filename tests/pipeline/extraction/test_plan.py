"""What a plan counts, why, and that it only looks."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image as Pillow

from cache import Store
from manifests.errors import ManifestError
from manifests.identity import caption_key, image_key, text_key
from manifests.schema import Dataset, Image
from pipeline.core.image_files import DIGESTS, DigestCache
from pipeline.extraction.cost import memory_of
from pipeline.extraction.extractors.base import Extractor
from pipeline.extraction.images import ReadError
from pipeline.extraction.plan import UP_TO_DATE, open_store, plan_extraction
from pipeline.extraction.run import extract

from .conftest import build_dataset, picture

Load = Callable[..., Extractor]


def files_below(folder: Path) -> dict[str, int]:
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


def test_unique_work_without_a_forward_pass_or_a_written_file(
    load: Load, clip_folder: Path, dataset: Dataset, tmp_path: Path
) -> None:
    extractor, stores = load("clip", clip_folder), tmp_path / "stores"
    plan = plan_extraction(dataset, extractor, open_store(stores, dataset, extractor), stores=stores)
    texts = {text for _, text in dataset.queries()}
    assert extractor.calls == 0 and not stores.exists()
    image, text = plan.tables["image"], plan.tables["text"]
    assert (image.requests, image.unique, len(image.todo), image.done) == (12, 12, 12, 0)
    assert (text.requests, text.unique) == (sum(len(s.turns) + 1 for s in dataset.sessions), len(texts))
    assert [i.key for i in text.todo] == [text_key(t) for t in dict.fromkeys(t for _, t in dataset.queries())]
    assert image.reason == text.reason == "no store yet"
    assert image.bytes == 12 * (12 * 4 + 16) and plan.bytes == image.bytes + text.bytes
    root = dataset.images_root
    assert root is not None
    assert plan.catalogue == {i: image_key((root / f"{i}.jpg").read_bytes()) for i in dataset.images}
    assert json.loads(json.dumps(plan.as_dict()))["tables"]["image"]["todo"] == 12
    assert "no store yet" in plan.text() and plan.fingerprint[:12] in plan.text()


def test_reasons(load: Load, clip_folder: Path, bert_folder: Path, dataset: Dataset, tmp_path: Path) -> None:
    stores, extractor = tmp_path / "stores", load("clip", clip_folder)
    report = extract(dataset, extractor, stores, progress="silent")

    def plan(data: Dataset, chosen: Extractor = extractor):
        return plan_extraction(data, chosen, open_store(stores, data, chosen), stores=stores)

    before = files_below(stores)
    assert {t.reason for t in plan(dataset).tables.values()} == {UP_TO_DATE} and plan(dataset).todo == 0
    assert plan(dataset).path == report.path
    more = build_dataset(dataset.images_root, images=14)
    table = plan(more).tables["image"]
    assert (table.done, len(table.todo), table.reason) == (12, 2, "output missing: 12 of 14 rows are there")
    half = plan(dataset, load("clip", clip_folder, dtype="bfloat16")).tables["image"]
    assert half.reason == f'stale: {report.path.name} has another fingerprint (compute_dtype: "float32" -> "bfloat16")'
    assert plan(dataset, load("caption", bert_folder)).tables["image"].reason == "no store yet"
    assert files_below(stores) == before


def test_equal_bytes_are_one_row_under_two_ids(load: Load, clip_folder: Path, tmp_path: Path) -> None:
    data = build_dataset(tmp_path / "images")
    (tmp_path / "images/i003.jpg").write_bytes((tmp_path / "images/i001.jpg").read_bytes())
    plan = plan_extraction(data, load("clip", clip_folder), None)
    assert plan.tables["image"].unique == 11 and plan.catalogue["i001"] == plan.catalogue["i003"]
    assert [i.names for i in plan.tables["image"].todo if "i001" in i.names] == [("i001", "i003")]


def test_captions_stand_in_and_their_key_covers_the_attributes(load: Load, bert_folder: Path) -> None:
    data = build_dataset(None)
    data = data.model_copy(update={"attributes": {"i000": {"fabric": ("floral",)}}})
    plain = plan_extraction(data, load("caption", bert_folder), None)
    rich = plan_extraction(data, load("caption", bert_folder, attributes=True), None)
    caption = data.images["i000"].caption or ""
    assert plain.catalogue["i000"] == caption_key(caption)
    assert rich.catalogue["i000"] == caption_key(f"{caption}, floral")
    assert plain.catalogue["i001"] == rich.catalogue["i001"]


def test_a_dataset_without_what_is_read_is_an_invalid_manifest(
    load: Load, clip_folder: Path, bert_folder: Path, tmp_path: Path
) -> None:
    data = build_dataset(None)
    stores = tmp_path / "stores"
    with pytest.raises(ManifestError, match="reads image files and this dataset has none"):
        extract(data, load("clip", clip_folder), stores, progress="silent")
    bare = data.model_copy(update={"images": {i: Image(id=i, file=f"{i}.jpg") for i in data.images}})
    with pytest.raises(ManifestError, match="no image of this dataset has one"):
        extract(bare, load("caption", bert_folder), stores, progress="silent")
    gone = bare.model_copy(update={"images_root": tmp_path / "nowhere"})
    with pytest.raises(ManifestError, match="nowhere does not exist"):
        extract(gone, load("clip", clip_folder), stores, progress="silent")
    assert not stores.exists()


# ---- remembered digests


def old(path: Path) -> None:
    """Make the file look as if it had been at rest for a while."""
    past = time.time_ns() - 10_000_000_000
    os.utime(path, ns=(past, past))


def test_digests_are_remembered_and_a_change_is_seen(tmp_path: Path) -> None:
    root, memory = tmp_path.resolve(), tmp_path / "store" / DIGESTS
    for name in ("a", "b"):
        (root / name).write_bytes(name.encode() * 100)
        old(root / name)
    first = DigestCache(memory, root)
    assert dict(first.keys(["a", "b"], 2)) == {n: image_key(n.encode() * 100) for n in ("a", "b")}
    first.save()
    lines = memory.read_text().splitlines()
    assert len(lines) == 3 and lines[1].endswith("\ta")
    forged = memory.read_text().replace(image_key(b"a" * 100).hex(), "0" * 32)
    memory.write_text(forged)
    assert dict(DigestCache(memory, root).keys(["a"], 1))["a"] == bytes(16)  # taken from the file, not read again
    (root / "a").write_bytes(b"c" * 100)  # same size, another time
    assert dict(DigestCache(memory, root).keys(["a"], 1))["a"] == image_key(b"c" * 100)
    (root / "elsewhere").mkdir()
    assert not DigestCache(memory, root / "elsewhere")._known  # another folder's files are other files
    cache = DigestCache(memory, root)
    cache.forget(["b"])
    cache.save()
    assert "\tb" not in memory.read_text()


@pytest.mark.parametrize("content", ["", "other\n1\t2\t00\ta\n", "{}", "\x00\x01"])
def test_a_foreign_or_torn_memory_is_the_same_as_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "a").write_bytes(b"x")
    (tmp_path / DIGESTS).write_text(content)
    assert dict(DigestCache(tmp_path / DIGESTS, tmp_path.resolve()).keys(["a"], 2)) == {"a": image_key(b"x")}


def test_a_fresh_file_is_not_remembered_and_a_missing_one_has_a_reason(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x")
    cache = DigestCache(tmp_path / "memory", tmp_path.resolve())
    found = dict(cache.keys(["a", "b"], 2))
    cache.save()
    assert isinstance(found["b"], ReadError) and "no such file" in found["b"].reason
    assert not (tmp_path / "memory").exists()


def test_a_wrong_digest_makes_no_wrong_row(load: Load, clip_folder: Path, tmp_path: Path) -> None:
    """Size and time as remembered, other bytes: found when the image is decoded, and set right by the next run."""
    data, stores, extractor = build_dataset(tmp_path / "images"), tmp_path / "stores", load("clip", clip_folder)
    victim = tmp_path / "images/i004.jpg"
    for path in (tmp_path / "images").iterdir():
        old(path)
    plan_extraction(data, extractor, None, stores=stores, remember=True)
    memory = stores / "tiny" / DIGESTS
    was = image_key(victim.read_bytes())
    memory.write_text(memory.read_text().replace(was.hex(), "ab" * 16))
    report = extract(data, extractor, stores, progress="silent")
    (failure,) = Store.open(report.path).failures()
    assert (failure.item, failure.stage) == ("i004", "read") and "changed while" in failure.reason
    report = extract(data, extractor, stores, progress="silent")
    store = Store.open(report.path)
    assert report.extracted == 1 and store.failures() == [] and store.catalogue()["i004"] == was
    assert Pillow.open(victim).size == picture(0).size


def test_a_plan_bounds_the_memory_of_a_job(load: Load, clip_folder: Path) -> None:
    extractor = load("clip", clip_folder)
    bound = memory_of(extractor, 1000, 5000, 4, 64)
    assert (bound.processes, bound.decoding) == (4, 4 * (89_478_485 * 26 + 2**30))
    weights = sum(p.nbytes for p in (*extractor.model.parameters(), *extractor.model.buffers()))
    assert bound.model == weights and bound.waiting == (4 * 64 + 4 * 2 * 8) * 3 * 32 * 32 and bound.catalog == 5_000_000
    assert bound.bytes == sum((bound.decoding, bound.model, bound.waiting, bound.catalog, bound.program))
    assert f"memory  at most {bound.bytes / 1e9:.1f} GB" in bound.text() and "in 4 process(es) 13.6" in bound.text()
    assert memory_of(extractor, 100, 100, 4, 64).processes == 1 and memory_of(extractor, 0, 100, 4, 64).decoding == 0
    half = load("clip", clip_folder, dtype="bfloat16")  # is compared with a float32 model
    assert memory_of(half, 1000, 5000, 4, 64).model > bound.model
