"""Ctrl-C and SIGKILL: what is finished is kept, and the resumed store is the same."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cache import Store
from manifests.schema import Dataset
from pipeline.extraction.engine import gentle_interrupt
from pipeline.extraction.extractors.base import Extractor
from pipeline.extraction.extractors.clip import ClipExtractor
from pipeline.extraction.run import Interrupted

from .conftest import build_dataset
from .helpers import rows_by_key, run, store_in, texts_of, tiny

Load = Callable[..., Extractor]


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
    folder = store_in(stores)
    assert Store.open(folder).tables["text"].rows == 12  # one whole shard, and the finished batch of the next
    resumed = tiny(Stopped, clip_folder)
    resumed.after = 1000
    report = run(data, resumed, stores)
    assert (
        report.path == folder and report.reused == 24 and resumed.calls == len(texts_of(data)) - 12 == report.extracted
    )


class Slow(ClipExtractor):
    """Leaves time to be killed."""

    def _image_features(self, batch: Any) -> torch.Tensor:
        time.sleep(0.15)
        return super()._image_features(batch)


Slow.__module__ = ClipExtractor.__module__


def slow_job(data: Dataset, model: Path, stores: Path, said: Path) -> None:
    """A job in a forked process: a new interpreter would take seconds to import the models' library."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs start with it ignored
    try:
        run(data, tiny(Slow, model), stores, batch_size=2, shard_rows=4)
    except BaseException as error:
        said.write_text(str(error))
        sys.exit(getattr(error, "exit_code", 1))


def wait_for_shards(stores: Path, count: int, process: BaseProcess) -> None:
    deadline = time.monotonic() + 120
    while len(list(stores.glob("tiny/*/image-*.h5"))) < count:
        assert process.is_alive() and time.monotonic() < deadline, "the job ended, or never began"
        time.sleep(0.01)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.parametrize("how", ["SIGKILL", pytest.param("SIGINT", marks=pytest.mark.slow)])
def test_a_killed_job_resumes_and_ends_in_the_same_store(
    load: Load, clip_folder: Path, tmp_path: Path, how: str
) -> None:
    data = build_dataset(tmp_path / "images", images=40, sessions=30)
    stores, unique = tmp_path / "stores", 40 + len(texts_of(data))
    said = tmp_path / "said"
    process = multiprocessing.get_context("fork").Process(target=slow_job, args=(data, clip_folder, stores, said))
    process.start()
    wait_for_shards(stores, 2, process)
    os.kill(process.pid, getattr(signal, how))
    process.join(60)
    assert process.exitcode == {"SIGKILL": -signal.SIGKILL, "SIGINT": 130}[how]
    assert how == "SIGKILL" or "run the same command again to resume" in said.read_text()
    folder = store_in(stores)
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


@pytest.fixture
def interruptible() -> Iterator[None]:
    """SIGINT as a terminal's program has it: a shell starts background jobs with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_between_batches_and_a_second_one_at_once(interruptible: None) -> None:
    with pytest.raises(KeyboardInterrupt), gentle_interrupt() as check:
        check()
        signal.raise_signal(signal.SIGINT)
        reached = True
        check()
        reached = False
    assert reached and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with pytest.raises(KeyboardInterrupt), gentle_interrupt():
        signal.raise_signal(signal.SIGINT)  # after the last look: still reported, at the end
    after_second = False
    with pytest.raises(KeyboardInterrupt), gentle_interrupt():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        after_second = True
    assert not after_second and signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_another_s_handler_is_left_alone() -> None:
    mine = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with gentle_interrupt() as check:
            signal.raise_signal(signal.SIGINT)
            check()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, mine)
