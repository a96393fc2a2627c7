"""The engine: the same bits however it is run, nothing lost when memory is short, an end when told to stop."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cache import Store, StoreError, store_path
from pipeline.extraction.extractors.base import Extractor, ExtractorError
from pipeline.extraction.extractors.caption import CaptionExtractor
from pipeline.extraction.extractors.clip import ClipExtractor
from pipeline.extraction.prefetch import Commits, InThread
from pipeline.extraction.run import ExtractionError
from pipeline.extraction.transfer import Stacked, stack

from .conftest import build_dataset, picture
from .helpers import JointExtractor, run, shards_of, store_in, texts_of, tiny

Load = Callable[..., Extractor]


class SmallMemory(ClipExtractor):
    """Its device has room for three items at a time."""

    room = 3
    batches: tuple[int, ...] = ()

    def _text_features(self, texts: list) -> torch.Tensor:
        self.batches += (len(texts),)
        if len(texts) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return super()._text_features(texts)


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
    folder = store_in(tmp_path / "none")
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
    with pytest.raises(ExtractorError, match=r"failed on every item of a batch \(\d+ of \d+: ValueError"):
        run(data, extractor, tmp_path / "other", batch_size=8, shard_rows=100)


# ---- overlapped and sequential


@pytest.mark.parametrize("family", ["clip", "caption"])
def test_overlapped_and_sequential_stores_have_equal_bytes(
    load: Load, clip_folder: Path, bert_folder: Path, tmp_path: Path, family: str
) -> None:
    data = build_dataset(tmp_path / "images", images=30, sessions=15)
    for n in (3, 4, 11):
        (tmp_path / f"images/i{n:03}.jpg").write_bytes(b"no image %d" % n)
    model = clip_folder if family == "clip" else bert_folder
    reports = [run(data, load(family, model), tmp_path / str(n), workers=n) for n in (0, 1, 3)]
    plain, *overlapped = [shards_of(report.path) for report in reports]
    assert len(plain) > 5 and overlapped == [plain, plain]
    if family == "clip":
        assert [f.item for f in Store.open(reports[1].path).failures()] == ["i003", "i004", "i011"]


def test_joint_model_overlapped_and_sequential(clip_folder: Path, tmp_path: Path) -> None:
    data = build_dataset(tmp_path / "images", images=10, sessions=6)
    plain, overlapped = (run(data, tiny(JointExtractor, clip_folder), tmp_path / str(n), workers=n) for n in (0, 2))
    assert shards_of(plain.path) == shards_of(overlapped.path)


def test_prepared_images_are_stacked_once_and_read_back_one_by_one(load: Load, clip_folder: Path) -> None:
    extractor = load("clip", clip_folder)
    parts = [extractor.prepare(picture(n)) for n in range(5)]
    stacked = stack(parts, torch.device("cpu"))
    assert isinstance(stacked, Stacked) and len(stacked) == 5 and len(stacked[1:4]) == 3
    for n in range(5):
        np.testing.assert_array_equal(stacked[n]["pixel_values"], parts[n]["pixel_values"])
    np.testing.assert_array_equal(stacked[1:4][2]["pixel_values"], parts[3]["pixel_values"])
    np.testing.assert_array_equal(extractor.encode_images(stacked), extractor.encode_images(parts))
    with pytest.raises(IndexError):
        stacked[5]


@pytest.mark.parametrize(
    "parts",
    [[], [np.arange(3)], [{}], [{"a": np.zeros(2)}, {"a": np.zeros(3)}], [{"a": np.zeros(2)}, {"b": np.zeros(2)}]],
)
def test_what_cannot_be_stacked_stays_as_it_is(parts: list) -> None:
    assert stack(parts, torch.device("cpu")) is parts


def test_prepared_images_in_memory_are_bounded(clip_folder: Path, tmp_path: Path) -> None:
    """A slow model over many images: decoding stops ahead of it, and does not fill the memory."""
    alive, most, lock = [0], [0], threading.RLock()

    def change(by: int) -> None:
        with lock:
            alive[0] += by
            most[0] = max(most[0], alive[0])

    class Array(np.ndarray):
        """As numpy's own, which takes no weak reference."""

    class Counting(ClipExtractor):
        def prepare(self, image: Any) -> dict[str, np.ndarray]:
            found = super().prepare(image)["pixel_values"].view(Array)
            change(1)
            weakref.finalize(found, change, -1)
            return {"pixel_values": found}

        def _image_features(self, images: Any) -> torch.Tensor:
            time.sleep(0.02)
            return super()._image_features(images)

    Counting.__module__ = ClipExtractor.__module__
    data = build_dataset(tmp_path / "images", images=60, sessions=1)
    report = run(data, tiny(Counting, clip_folder), tmp_path / "stores", batch_size=4, shard_rows=120, workers=2)
    assert report.tables["image"].extracted == 60
    # the job being prepared, those waiting for their batch, and the batch being put together
    assert 8 <= most[0] <= 8 + 8 + 4 and alive[0] == 0


# ---- threads and their end


def test_a_generator_in_a_thread_keeps_order_and_bound() -> None:
    made: list[int] = []

    def source() -> Iterator[int]:
        for n in range(50):
            made.append(n)
            yield n

    with InThread(source(), depth=3) as items:
        for taken, n in enumerate(items):
            assert n == taken and len(made) <= taken + 6
    assert len(made) == 50


def test_an_error_in_the_thread_comes_after_the_good_items() -> None:
    def source() -> Iterator[int]:
        yield 1
        yield 2
        raise ValueError("spoilt")

    taken = []
    with pytest.raises(ValueError, match="spoilt"), InThread(source(), depth=1) as items:
        for n in items:
            taken.append(n)
    assert taken == [1, 2]


def test_leaving_early_closes_the_source() -> None:
    closed = threading.Event()

    def source() -> Iterator[int]:
        try:
            while True:
                yield 0
        finally:
            closed.set()

    before = threading.active_count()
    with InThread(source(), depth=2) as items:
        next(items)
    assert closed.wait(30) and threading.active_count() == before


@pytest.mark.parametrize("threaded", [True, False])
def test_commits_are_in_order_and_their_error_is_raised(threaded: bool) -> None:
    seen: list[int] = []

    def commit(n: int) -> None:
        if n == 3:
            raise OSError("disk full")
        seen.append(n)

    with Commits(seen.append, threaded) as commits:
        for n in range(5):
            commits.put(n)
    assert seen == [0, 1, 2, 3, 4]
    seen.clear()
    with pytest.raises(OSError, match="disk full"), Commits(commit, threaded) as commits:
        for n in range(20):
            commits.put(n)
    assert seen == [0, 1, 2]


class Obstructed(ClipExtractor):
    """While it works, something that is no file comes to lie in the place of the third image shard."""

    obstacle: Path
    left = 5  # batches

    def _image_features(self, images: Any) -> torch.Tensor:
        self.left -= 1
        if not self.left:
            self.obstacle.mkdir()
        return super()._image_features(images)


Obstructed.__module__ = ClipExtractor.__module__  # its rows are the clip extractor's


def test_a_shard_that_cannot_be_written_ends_the_job_and_costs_nothing_else(
    load: Load, clip_folder: Path, tmp_path: Path
) -> None:
    data, stores = build_dataset(tmp_path / "images", images=40), tmp_path / "stores"
    extractor = tiny(Obstructed, clip_folder)
    extractor.obstacle = store_path(stores, "tiny", extractor.name, extractor.semantic()) / "image-00002.h5"
    with pytest.raises(StoreError, match=r"Is a directory; what was committed is whole \(16 rows"):
        run(data, extractor, stores)
    ours = ("batches", "prepare", "writer")
    assert not [t.name for t in threading.enumerate() if t.name.startswith(ours)]
    extractor.obstacle.rmdir()
    assert Store.open(store_in(stores)).tables["image"].rows == 16
    report = run(data, load("clip", clip_folder), stores)
    assert report.tables["image"].extracted == 24
    assert shards_of(report.path) == shards_of(run(data, load("clip", clip_folder), tmp_path / "clean").path)
