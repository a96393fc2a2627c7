"""Bad files and texts: each has its outcome on record, the others their rows."""

from __future__ import annotations

import errno
import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow

from cache import Store
from manifests.identity import stack_keys, text_key
from manifests.schema import Image, RunSpec
from pipeline.bench._world import corrupted
from pipeline.extraction.extractors.base import Extractor, ExtractorError
from pipeline.extraction.extractors.clip import ClipExtractor
from pipeline.extraction.run import ExtractionError, TooManyFailures
from pipeline.jobs.identities import what_helps

from .conftest import build_dataset, picture
from .helpers import run, store_in, texts_of, tiny

Load = Callable[..., Extractor]


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
    folder = store_in(stores)
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
        ExtractionError,
        match=r"none of the 12 items of table 'image'.*12 of 12: read: no such file: 'i000.jpg'.*check the images",
    ):
        run(data, load("clip", clip_folder), tmp_path / "stores")


def odd_images(root: Path) -> dict[str, tuple[str, str]]:
    """Every kind of odd file in place of an image; gives the (stage, reason) of those that must fail, "" of the others."""
    red = picture(3)

    def save(number: int, image: Pillow.Image, kind: str, **how: Any) -> None:
        image.save(root / f"i{number:03}.jpg", kind, **how)

    rotated = Pillow.Exif()
    rotated[0x0112] = 6
    frames = [picture(n) for n in range(50, 53)]
    save(0, red.convert("CMYK"), "JPEG")
    save(1, red.convert("P"), "PNG")
    save(2, Pillow.fromarray(np.arange(48 * 40, dtype=np.uint16).reshape(48, 40) * 30), "PNG")
    save(3, red, "JPEG", exif=rotated)
    save(4, frames[0], "GIF", save_all=True, append_images=frames[1:])
    save(5, Pillow.new("1", (20000, 20000)), "PNG")
    data = (root / "i006.jpg").read_bytes()
    (root / "i006.jpg").write_bytes(data[: len(data) // 2])
    (root / "i007.jpg").write_bytes(b"")
    (root / "i008.jpg").write_bytes(b"%PDF-1.4 no image")
    (root / "i009.jpg").unlink()
    (root / "i009.jpg").mkdir()
    header = struct.pack(">II5B", 0, 40, 8, 2, 0, 0, 0)  # a PNG that says it is 0 pixels wide
    chunk = b"IHDR" + header
    png = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    (root / "i010.jpg").write_bytes(png)
    return {
        **{f"i{n:03}": ("", "") for n in range(5)},
        "i005": ("decode", "decompression bomb"),
        "i006": ("decode", "cannot be decoded"),
        "i007": ("decode", "the file is empty"),
        "i008": ("decode", "not an image of a known format"),
        "i009": ("read", "not a regular file"),
        "i010": ("decode", ""),
    }


def test_every_kind_of_odd_image_has_its_outcome(load: Load, clip_folder: Path, tmp_path: Path) -> None:
    data = build_dataset(tmp_path / "images", images=14)
    wanted = odd_images(tmp_path / "images")
    extractor = load("clip", clip_folder)
    report = run(data, extractor, tmp_path / "stores")
    store = Store.open(report.path)
    failures = {f.item: (f.stage, f.reason) for f in store.failures()}
    assert set(failures) == {item for item, (stage, _) in wanted.items() if stage}
    for item, (stage, reason) in failures.items():
        assert stage == wanted[item][0] and wanted[item][1] in reason
    catalogue = store.catalogue()
    kept = [i for i in data.images if i not in failures]
    assert set(store.find("image", stack_keys(catalogue[i] for i in kept))) == set(range(8))
    assert report.tables["image"].extracted == extractor.calls - len(texts_of(data)) == 8 and report.failed == 6


def test_sessions_that_need_a_failed_row_are_counted_and_not_filled(
    load: Load, clip_folder: Path, tmp_path: Path
) -> None:
    data = build_dataset(tmp_path / "images", images=12, sessions=8)
    (tmp_path / "images/i004.jpg").write_bytes(b"bad")
    need = [s for s in data.sessions if "i004" in {s.target, *(t.reference for t in s.turns)}]
    assert 0 < len(need) < 8
    report = run(data, load("clip", clip_folder), tmp_path / "stores")
    assert report.left_out == {"train": (len(need), 8)}
    assert f"{len(need)} of 8 train sessions need one of these rows: they are left out" in report.text()
    assert report.as_dict()["sessions_left_out"] == {"train": {"sessions": len(need), "of": 8}}
    picture(4).save(tmp_path / "images/i004.jpg")
    assert run(data, load("clip", clip_folder), tmp_path / "stores").left_out == {}


def test_a_text_that_lost_its_end_is_on_record_and_has_its_row(load: Load, clip_folder: Path, tmp_path: Path) -> None:
    data = build_dataset(tmp_path / "images", sessions=12)
    extractor = load("clip", clip_folder)
    report = run(data, extractor, tmp_path / "stores")
    words = {text: len(text.replace(".", " . ").split()) for text in texts_of(data)}
    long = {text for text, n in words.items() if n + 2 > extractor.tokens.length}  # and two special tokens
    lines = [json.loads(line) for line in (report.path / "ledger.jsonl").read_text().splitlines()]
    named = [line["item"] for line in lines if "truncated to the maximum length" in line.get("reason", "")]
    assert long and sorted(named) == sorted(long) and report.cut == len(long)
    store = Store.open(report.path)
    assert store.failures() == [] and (store.find("text", stack_keys(text_key(t) for t in long)) >= 0).all()
    assert run(data, load("clip", clip_folder), tmp_path / "stores").extracted == 0


def test_one_in_a_hundred_images_corrupted_is_found_exactly(load: Load, clip_folder: Path, tmp_path: Path) -> None:
    data = build_dataset(tmp_path / "images", images=100)
    with corrupted(tmp_path / "images", tmp_path / "copy", 100, 0.03) as bad:
        copy = data.model_copy(update={"images_root": tmp_path / "copy"})
        report = run(copy, load("clip", clip_folder), tmp_path / "stores", batch_size=16, shard_rows=32)
        failures = Store.open(report.path).failures()
        assert len(bad) == 3 and {f.item for f in failures} == bad and {f.stage for f in failures} == {"decode"}
    assert report.tables["image"].extracted == 97 and not (tmp_path / "copy").exists()


def test_thin_images_that_a_resize_would_blow_up_are_failures(load: Load, clip_folder: Path, tmp_path: Path) -> None:
    """100,000 x 1 pixels in some hundred bytes: the shorter side to 32 pixels would be 3.2 million x 32."""
    data = build_dataset(tmp_path / "images", images=4)
    Pillow.new("L", (100_000, 1)).save(tmp_path / "images/i001.jpg", "PNG")
    Pillow.new("L", (1000, 1)).save(tmp_path / "images/i002.jpg", "PNG")  # 32,000 x 32 is within the limit
    report = run(data, load("clip", clip_folder), tmp_path / "stores")
    (failure,) = Store.open(report.path).failures()
    assert failure.item == "i001" and failure.stage == "decode"
    assert failure.reason == "the image of 100000x1 would be resized to 102,400,000 pixels, limit 89,478,485: crop it"


def test_an_io_error_is_tried_again_and_a_content_error_is_not(
    load: Load, clip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, root, stores = build_dataset(tmp_path / "images", images=12), tmp_path / "images", tmp_path / "stores"
    (root / "i000.jpg").write_text("not an image")
    sick, whole = {"i001.jpg", "i002.jpg"}, Path.read_bytes
    reads: dict[str, int] = {}

    def read_bytes(path: Path) -> bytes:
        reads[path.name] = reads.get(path.name, 0) + 1
        if path.name in sick and (reads[path.name] > 1 or path.name == "i002.jpg"):  # i001 is whole when it is hashed
            raise OSError(errno.EIO, "Input/output error")
        return whole(path)

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    extractor = load("clip", clip_folder)
    report = run(data, extractor, stores, workers=0)
    assert report.unread == 2 and report.as_dict()["unread"] == 2
    assert "2 of them could not be read from the disk: run the same command again" in report.text()
    assert "(most frequent, 2 of 3: read: cannot be read: Input/output error)" in report.text()
    helps = what_helps(Store.open(report.path), RunSpec.model_construct(name="mine"))
    assert helps == "run `fashion-ntm extract mine`, which reads 2 unreadable files again"

    sick.clear()
    again = run(data, extractor, stores, workers=0)
    assert (again.extracted, again.unread, again.failed) == (2, 0, 1)
    assert [f.item for f in Store.open(again.path).failures()] == ["i000"]
    helps = what_helps(Store.open(report.path), RunSpec.model_construct(name="mine"))
    assert helps.startswith("fix what failed (decode: not an image") and helps.endswith("--retry-failed`")


def test_a_batch_that_failed_whole_names_the_most_frequent_reason(clip_folder: Path, tmp_path: Path) -> None:
    class Uncropped(ClipExtractor):
        def prepare(self, image: Pillow.Image) -> Any:
            pixels = super().prepare(image)["pixel_values"]
            return {"pixel_values": pixels[:, : pixels.shape[1] - image.size[0] % 2]}

        def _image_features(self, images: Any) -> Any:
            if len({image["pixel_values"].shape for image in images}) > 1:
                raise ValueError("all input arrays must have the same shape")
            raise ValueError("the image has another size than the model reads")

    data = build_dataset(tmp_path / "images", images=6)
    for n in range(6):
        Pillow.new("RGB", (40 + n, 40), (40 * n, 0, 0)).save(tmp_path / f"images/i{n:03}.jpg")
    with pytest.raises(ExtractorError) as error:
        run(data, tiny(Uncropped, clip_folder), tmp_path / "stores", batch_size=6)
    assert "(6 of 6: ValueError: the image has another size than the model reads)" in str(error.value)
    assert "makes images of several sizes" in str(error.value) and "do_center_crop" in str(error.value)
