"""Bad files and texts: each has its outcome on record, the others their rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cache import Store
from manifests.schema import Image
from pipeline.extraction.extractors.base import Extractor
from pipeline.extraction.run import ExtractionError, TooManyFailures

from .conftest import build_dataset, picture
from .helpers import run, store_in, texts_of

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
        ExtractionError, match=r"none of the 12 items of table 'image'.*i000: no such file.*check the images"
    ):
        run(data, load("clip", clip_folder), tmp_path / "stores")
