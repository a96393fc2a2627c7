"""Extraction end to end on real models and files: exact counts, bad input, resume, interruption."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as Pillow
from safetensors.torch import load_file, save_file

from cache import Store
from manifests.identity import caption_key, image_key, pair_key, stack_keys, text_key
from manifests.schema import Dataset, Image
from pipeline.extraction.extractors.base import Extractor, ExtractorError
from pipeline.extraction.extractors.caption import CaptionExtractor
from pipeline.extraction.extractors.clip import ClipExtractor
from pipeline.extraction.images import decode
from pipeline.extraction.run import ExtractionError, Interrupted, TooManyFailures, extract

from .conftest import build_dataset, picture, save_clip

Load = Callable[..., Extractor]
ROOT = Path(__file__).resolve().parents[3]


def run(data: Dataset, extractor: Extractor, stores: Path, **how: Any):
    return extract(data, extractor, stores, **{"progress": "silent", "batch_size": 4, "shard_rows": 8, **how})


def rows_by_key(store: Store, table: str) -> dict[bytes, np.ndarray]:
    return {k.tobytes(): r for k, r in zip(store.keys(table), store.load(table), strict=True)}


def texts_of(data: Dataset) -> list[str]:
    return list(dict.fromkeys(text for _, text in data.queries()))


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.iterdir() if p.is_file()}


# ---- what is computed


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


class JointExtractor(ClipExtractor):
    """A joint model made of the tiny CLIP: a query is the image plus the text."""

    tables = ("query", "target")

    def dim(self, table: str) -> int:
        return super().dim("image")

    def _pair_features(self, images: list, texts: list) -> torch.Tensor:
        return self._image_features(images) + self._text_features(texts)


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


# ---- bad input


def spoil(root: Path) -> dict[str, str]:
    """Make some files of the folder bad; gives the stage at which each must fail."""
    data = (root / "i000.jpg").read_bytes()
    (root / "i000.jpg").write_bytes(data[: len(data) // 2])
    (root / "i001.jpg").write_bytes(b"")
    (root / "i002.jpg").write_text("not an image")
    (root / "i003.jpg").unlink()
    (root / "i004.jpg").unlink()
    (root / "i004.jpg").symlink_to(root.parent / "outside.jpg")
    picture(1).save(root.parent / "outside.jpg")
    return {"i000": "decode", "i001": "decode", "i002": "decode", "i003": "read", "i004": "read", "i005": "read"}


def test_bad_images_are_recorded_and_the_job_goes_on(load: Load, clip_folder: Path, tmp_path: Path) -> None:
    data, root, stores = build_dataset(tmp_path / "images", images=16), tmp_path / "images", tmp_path / "stores"
    data = data.model_copy(update={"images": data.images | {"i005": Image(id="i005", file="../outside.jpg")}})
    whole = {name: (root / f"{name}.jpg").read_bytes() for name in data.images}
    wanted = spoil(root)
    picture(8).convert("CMYK").save(root / "i006.jpg")  # odd, and fine
    extractor = load("clip", clip_folder)
    report = run(data, extractor, stores)
    store = Store.open(report.path)
    assert {f.item: f.stage for f in store.failures()} == wanted
    assert report.tables["image"].extracted == 10 and report.failed == 6
    assert "6 items have no row" in report.text() and "ledger.jsonl" in report.text()
    lines = (report.path / "ledger.jsonl").read_text().count("\n")

    calls, again = extractor.calls, run(data, extractor, stores)  # known failures are left alone
    assert extractor.calls == calls and again.extracted == 0 and again.failed == 6
    assert (report.path / "ledger.jsonl").read_text().count("\n") == lines
    assert "3 known failures are left alone (--retry-failed tries them again)" in again.reasons["image"]

    (root / "i000.jpg").write_bytes(whole["i000"])  # another content: tried again unasked
    (root / "i003.jpg").write_bytes(whole["i003"])
    healed = run(data, extractor, stores)
    assert healed.extracted == 2
    assert set(wanted) - {"i000", "i003"} == {f.item for f in Store.open(report.path).failures()}


def test_retry_failed_tries_exactly_those(load: Load, bert_folder: Path, tmp_path: Path) -> None:
    """A model that gives NaN for one word: those texts fail, and succeed once it is retried with the word mended."""
    data, stores = build_dataset(None, sessions=10), tmp_path / "stores"
    extractor = load("caption", bert_folder)
    words = extractor.model.embeddings.word_embeddings.weight
    floral = extractor.tokens.tokenizer.convert_tokens_to_ids("floral")
    saved = words[floral].clone()
    words[floral] = float("nan")
    report = run(data, extractor, stores)
    store = Store.open(report.path)
    bad = [t for t in texts_of(data) if "floral" in t]
    assert [f.item for f in store.failures() if f.table == "text"] and bad
    assert sorted(f.item for f in store.failures() if f.table == "text") == sorted(bad)
    assert {(f.stage, f.reason) for f in store.failures()} == {("encode", "the model gave NaN or Inf")}
    captions = [i.id for i in data.images.values() if "floral" in (i.caption or "")]
    assert sorted(f.item for f in store.failures() if f.table == "image") == captions
    words[floral] = saved
    assert run(data, extractor, stores).extracted == 0
    retried = run(data, extractor, stores, retry_failed=True)
    assert retried.extracted == len(bad) + len(captions) and Store.open(report.path).failures() == []


def test_max_failures_stops_early_and_keeps_what_was_done(load: Load, clip_folder: Path, tmp_path: Path) -> None:
    data, root, stores = build_dataset(tmp_path / "images", images=30), tmp_path / "images", tmp_path / "stores"
    for n in (9, 12, 17, 25):
        (root / f"i{n:03}.jpg").write_bytes(f"bad {n}".encode())
    extractor = load("clip", clip_folder)
    with pytest.raises(
        TooManyFailures, match=r"2 items failed, more than --max-failures 1.*'i012' \(decode: not an image"
    ):
        run(data, extractor, stores, max_failures=1, workers=0)
    (folder,) = [p for p in (stores / "tiny").iterdir() if p.is_dir()]
    kept = Store.open(folder).tables["image"].rows
    assert 8 <= kept < 26 and "text" not in Store.open(folder).tables
    report = run(data, extractor, stores, max_failures=4)
    assert report.tables["image"].extracted == 26 - kept and report.failed == 4
    gone = data.model_copy(
        update={"images": {**data.images, **{f"x{n}": Image(id=f"x{n}", file=f"x{n}.jpg") for n in range(3)}}}
    )
    with pytest.raises(TooManyFailures, match="3 items cannot be read"):
        run(gone, extractor, stores, max_failures=2)


def test_no_row_at_all_is_an_error(load: Load, clip_folder: Path, tmp_path: Path) -> None:
    data = build_dataset(tmp_path / "images")
    for path in (tmp_path / "images").iterdir():
        path.rename(path.with_suffix(".jpeg"))
    with pytest.raises(
        ExtractionError, match=r"none of the 12 items of table 'image'.*i000: no such file.*check the images"
    ):
        run(data, load("clip", clip_folder), tmp_path / "stores")


class SmallMemory(ClipExtractor):
    """Its device has room for three items at a time."""

    room = 3
    batches: tuple[int, ...] = ()

    def _text_features(self, texts: list) -> torch.Tensor:
        self.batches += (len(texts),)
        if len(texts) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return super()._text_features(texts)


def tiny(kind: type[Extractor], folder: Path) -> Any:
    return kind(kind.Options(model=str(folder), store_dtype="float32"), torch.device("cpu"))


def test_out_of_memory_halves_the_batch_and_loses_no_row(clip_folder: Path, tmp_path: Path) -> None:
    data = build_dataset(tmp_path / "images", sessions=15)
    extractor = tiny(SmallMemory, clip_folder)
    report = run(data, extractor, tmp_path / "stores", batch_size=16, shard_rows=100)
    assert report.tables["text"].extracted == len(texts_of(data)) and report.failed == 0
    assert extractor.batches[:4] == (16, 8, 4, 2) and max(extractor.batches[3:]) == 2  # and it stays halved
    assert extractor.calls == 12 + len(texts_of(data))
    extractor.room = 0
    data = build_dataset(tmp_path / "images", sessions=3, seed=1)
    with pytest.raises(ExtractionError, match="table 'text'"):
        run(data, extractor, tmp_path / "none")
    (folder,) = [p for p in (tmp_path / "none/tiny").iterdir() if p.is_dir()]
    assert {f.reason for f in Store.open(folder).failures() if f.table == "text"} == {"out of memory, even alone"}


class Picky(CaptionExtractor):
    """Refuses a batch that holds a given word."""

    word = "floral"

    def _text_features(self, texts: list) -> torch.Tensor:
        if any(self.tokens.tokenizer.convert_tokens_to_ids(self.word) in ids for ids in texts):
            raise ValueError(f"I do not know\n{self.word}")
        return super()._text_features(texts)

    def _image_features(self, texts: list) -> torch.Tensor:
        return super()._text_features(texts)


def test_an_error_of_the_model_costs_only_the_items_at_fault(bert_folder: Path, tmp_path: Path) -> None:
    data, extractor = build_dataset(None, sessions=10), tiny(Picky, bert_folder)
    report = run(data, extractor, tmp_path, batch_size=8, shard_rows=100)
    bad = [t for t in texts_of(data) if "floral" in t]
    failures = Store.open(report.path).failures()
    assert sorted(f.item for f in failures) == sorted(bad)
    assert {(f.stage, f.reason) for f in failures} == {("encode", "ValueError: I do not know floral")}
    extractor.word = "[CLS]"  # in every text: then the model is broken, not the items
    with pytest.raises(ExtractorError, match="failed on every item of a batch: ValueError"):
        run(data, extractor, tmp_path / "other", batch_size=8, shard_rows=100)


# ---- interruption


class Stopped(ClipExtractor):
    """Presses Ctrl-C in the middle of a job."""

    after = 3

    def _text_features(self, texts: list) -> torch.Tensor:
        self.after -= 1
        if self.after < 0:
            raise KeyboardInterrupt
        return super()._text_features(texts)


def test_ctrl_c_keeps_what_is_finished(load: Load, clip_folder: Path, tmp_path: Path) -> None:
    data, stores = build_dataset(tmp_path / "images", sessions=20), tmp_path / "stores"
    with pytest.raises(Interrupted, match=r"interrupted: 24 new rows are kept; run the same command again") as caught:
        run(data, tiny(Stopped, clip_folder), stores, batch_size=4, shard_rows=8)
    assert caught.value.exit_code == 130
    (folder,) = [p for p in (stores / "tiny").iterdir() if p.is_dir()]
    assert Store.open(folder).tables["text"].rows == 12  # one whole shard, and the finished batch of the next
    resumed = tiny(Stopped, clip_folder)
    resumed.after = 1000
    report = run(data, resumed, stores)
    assert (
        report.path == folder and report.reused == 24 and resumed.calls == len(texts_of(data)) - 12 == report.extracted
    )


SCRIPT = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs start with it ignored
import sys, time
from pathlib import Path
from pipeline.extraction.extractors import load_extractor
from pipeline.extraction.run import extract
from tests.pipeline.extraction.conftest import build_dataset, spec_of

images, model, stores = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
data = build_dataset(images, images=40, sessions=30)
extractor = load_extractor(spec_of("clip", model=model, store_dtype="float32"), "cpu")
inner = extractor._image_features
def slow(batch):
    time.sleep(0.15)
    return inner(batch)
extractor._image_features = slow
try:
    extract(data, extractor, stores, batch_size=2, shard_rows=4, progress="silent")
except BaseException as error:
    print(error)
    sys.exit(getattr(error, "exit_code", 1))
"""


def spawn(images: Path, model: Path, stores: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(images), str(model), str(stores)],
        cwd=ROOT, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def wait_for_shards(stores: Path, count: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while len(list(stores.glob("tiny/*/image-*.h5"))) < count:
        assert process.poll() is None and time.monotonic() < deadline, "the job ended, or never began"
        time.sleep(0.01)


@pytest.mark.parametrize("how", ["SIGKILL", "SIGINT"])
def test_a_killed_job_resumes_and_ends_in_the_same_store(
    load: Load, clip_folder: Path, tmp_path: Path, how: str
) -> None:
    data = build_dataset(tmp_path / "images", images=40, sessions=30)
    stores, unique = tmp_path / "stores", 40 + len(texts_of(data))
    process = spawn(tmp_path / "images", clip_folder, stores)
    wait_for_shards(stores, 2, process)
    process.send_signal(getattr(signal, how))
    said = process.communicate(timeout=60)[0]
    assert process.returncode == {"SIGKILL": -signal.SIGKILL, "SIGINT": 130}[how]
    assert how == "SIGKILL" or "run the same command again to resume" in said
    (folder,) = [p for p in (stores / "tiny").iterdir() if p.is_dir()]
    kept = Store.open(folder).tables["image"].rows
    assert 4 <= kept < 40

    extractor = load("clip", clip_folder)
    report = run(data, extractor, stores)
    assert report.path == folder and report.extracted + report.reused == unique
    # a signal inside a commit may leave a whole shard that only the next writer enters in the manifest
    assert report.reused in (kept, kept + 4) and extractor.calls == report.extracted
    clean = run(data, load("clip", clip_folder), tmp_path / "clean")
    one, two = Store.open(folder), Store.open(clean.path)
    for table in ("image", "text"):
        first, second = rows_by_key(one, table), rows_by_key(two, table)
        assert first.keys() == second.keys()
        assert max(np.abs(first[k] - second[k]).max() for k in first) <= 1e-5
    assert one.catalogue() == two.catalogue()


# ---- real photographs


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
