"""Decoding in worker processes: in order, the same bytes for any number of them, and none lost with a killed one."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from cache import Store
from pipeline.extraction.decoding import JOBS_AHEAD, Decoder, DecodingError, without_model
from pipeline.extraction.extractors.base import Extractor
from pipeline.extraction.extractors.clip import ClipExtractor
from pipeline.extraction.progress import Meter
from pipeline.extraction.run import extract
from pipeline.extraction.work import Item, ItemFailure, catalogue_of

from .conftest import build_dataset
from .helpers import JointExtractor, run, shards_of, tiny

Load = Callable[..., Extractor]
IMAGES = 200  # three processes, by IMAGES_A_WORKER


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images, two of them bad."""
    root = tmp_path_factory.mktemp("many") / "images"
    build_dataset(root, images=IMAGES)
    (root / "i003.jpg").write_bytes(b"no image")
    (root / "i150.jpg").write_bytes((root / "i151.jpg").read_bytes()[:200])
    return root


@pytest.fixture(autouse=True)
def quick_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """DataLoader looks every five seconds whether a worker is alive."""
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.3)
    monkeypatch.setattr(_MultiProcessingDataLoaderIter._try_get_data, "__defaults__", (0.3,))


@pytest.fixture(autouse=True)
def no_process_left() -> Iterator[None]:
    yield
    end = time.monotonic() + 20  # a process that was told to end needs a CPU to do so
    while multiprocessing.active_children() and time.monotonic() < end:
        time.sleep(0.05)
    assert multiprocessing.active_children() == []


def items_of(folder: Path, extractor: Extractor) -> list[Item]:
    found, _ = catalogue_of(build_dataset(folder, images=IMAGES), extractor, None, 1, False)
    return list(found.values())


def jobs_of(items: list[Item]) -> list[list[Item]]:
    return [items[start : start + 8] for start in range(0, len(items), 8)]


def test_stores_have_equal_bytes_for_any_number_of_processes(
    load: Load, clip_folder: Path, folder: Path, tmp_path: Path
):
    data = build_dataset(folder, images=IMAGES)
    extractor = load("clip", clip_folder)
    reports = [run(data, extractor, tmp_path / str(n), workers=n, batch_size=16, shard_rows=64) for n in (0, 1, 3)]
    plain, *others = [shards_of(report.path) for report in reports]
    assert others == [plain, plain] and reports[2].failed == 2
    assert [f.item for f in Store.open(reports[2].path).failures()] == ["i003", "i150"]


@pytest.mark.slow
def test_a_joint_model_s_arrays_come_back_too(clip_folder: Path, folder: Path, tmp_path: Path) -> None:
    data = build_dataset(folder, images=IMAGES, sessions=40)
    stores = [
        run(data, tiny(JointExtractor, clip_folder), tmp_path / str(n), workers=n, batch_size=16, shard_rows=64).path
        for n in (0, 2)
    ]
    assert shards_of(stores[0]) == shards_of(stores[1])


def test_jobs_are_taken_only_a_little_ahead(load: Load, clip_folder: Path, folder: Path) -> None:
    extractor, taken = load("clip", clip_folder), 0
    items = items_of(folder, extractor)

    def jobs() -> Iterator[list[Item]]:
        nonlocal taken
        for job in jobs_of(items):
            taken += 1
            yield job

    with Decoder(extractor, folder, 2) as decoder:
        for done, found in enumerate(decoder.run(jobs(), len(items), Meter())):
            assert len(found) == 8 and taken <= done + 1 + 2 * JOBS_AHEAD
        again = [found for found in decoder.run(jobs_of(items), len(items), Meter())]  # by the same processes
    assert len(again) == 25 and isinstance(again[0][3], ItemFailure) and again[0][3].item.names == ("i003",)


class Killed(ClipExtractor):
    """The process that prepares the 100th image is killed, ``times`` times."""

    marks: Path
    times = 1
    parent = 0

    def prepare(self, image: Any) -> Any:
        mark = self.marks / str(os.getpid())
        with open(mark, "a") as file:
            file.write(".")
        killed = len(list(self.marks.glob("killed*")))
        if killed < self.times and mark.stat().st_size > 20:
            with suppress(FileExistsError):  # another process is killed
                (self.marks / f"killed-{killed}").touch(exist_ok=False)
                os.kill(os.getpid(), signal.SIGKILL)
        return super().prepare(image)


Killed.__module__ = ClipExtractor.__module__


def test_the_items_of_a_killed_process_are_decoded_again(clip_folder: Path, folder: Path, tmp_path: Path) -> None:
    data, extractor = build_dataset(folder, images=IMAGES), tiny(Killed, clip_folder)
    extractor.marks = tmp_path / "marks"
    extractor.marks.mkdir()
    how: dict[str, Any] = {"batch_size": 16, "shard_rows": 64}
    report = run(data, extractor, tmp_path / "stores", workers=2, **how)
    assert len(list(extractor.marks.glob("killed*"))) == 1
    assert "a decoding process was lost (signal 9): its images are decoded again" in report.text()
    clean = run(data, tiny(ClipExtractor, clip_folder), tmp_path / "clean", workers=0, **how)
    one, two = Store.open(report.path), Store.open(clean.path)
    np.testing.assert_array_equal(one.keys("image"), two.keys("image"))
    np.testing.assert_array_equal(one.load("image"), two.load("image"))
    assert shards_of(report.path) == shards_of(clean.path)


def _decoded_in(place: str, kind: type[ClipExtractor], model: Path, folder: Path, marks: Path, send: Any) -> None:
    torch.set_num_threads(1)
    tempfile.tempdir, multiprocessing.current_process()._config["tempdir"] = place, None
    extractor, meter = tiny(kind, model), Meter()
    extractor.marks = marks
    items = items_of(folder, extractor)
    with Decoder(extractor, folder, 2) as decoder:
        send.send((sum(map(len, decoder.run(jobs_of(items), len(items), meter))), meter.notes))


@pytest.mark.parametrize("long", [False, True])
def test_temporary_folders(clip_folder: Path, folder: Path, tmp_path: Path, long: bool) -> None:
    """A killed process leaves none; a path that is too long for a socket does not stop the job."""
    with tempfile.TemporaryDirectory(dir="/tmp") as place:
        where = Path(place, "x" * 90 * long)
        where.mkdir(exist_ok=True)
        context, kind = multiprocessing.get_context("fork"), ClipExtractor if long else Killed
        receive, send = context.Pipe(duplex=False)
        given = (str(where), kind, clip_folder, folder, tmp_path, send)
        process = context.Process(target=_decoded_in, args=given)
        process.start()
        assert receive.poll(60)
        count, notes = receive.recv()
        process.join()
        assert count == IMAGES and list(where.glob("pymp-*")) == []
        assert ("set TMPDIR to a shorter one" if long else "process was lost") in notes[0]
        assert len(list(tmp_path.glob("killed*"))) == (not long)


class AlwaysKilled(ClipExtractor):
    def prepare(self, image: Any) -> Any:
        os.kill(os.getpid(), signal.SIGKILL)


class NeverSent(ClipExtractor):
    def prepare(self, image: Any) -> Any:
        return [open(os.devnull)]  # cannot be pickled


AlwaysKilled.__module__ = NeverSent.__module__ = ClipExtractor.__module__


@pytest.mark.parametrize(
    ("kind", "how"), [(AlwaysKilled, "signal 9"), pytest.param(NeverSent, "exit code 1", marks=pytest.mark.slow)]
)
def test_losses_again_and_again_end_the_job_with_the_place(
    kind: type[ClipExtractor], how: str, clip_folder: Path, folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(DecodingError, match=rf"lost 3 times in a row \({how}\), at image 'i000' .*--workers"):
        run(build_dataset(folder, images=IMAGES), tiny(kind, clip_folder), tmp_path, workers=2)


@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="limits of file sizes are POSIX's")
def test_full_shared_memory_is_said_and_threads_go_on(load: Load, clip_folder: Path, folder: Path) -> None:
    """No file may be larger than 4 kB, which files of shared memory are: the error is the one of a full folder."""
    extractor, meter = load("clip", clip_folder), Meter()
    items = items_of(folder, extractor)
    with Decoder(extractor, folder, 0) as plain:
        wanted = [part for found in plain.run(jobs_of(items), len(items), Meter()) for part in found]
    before, shared = resource.getrlimit(resource.RLIMIT_FSIZE), names_in_shared_memory()
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with Decoder(extractor, folder, 2) as decoder:
            found = [part for found in decoder.run(jobs_of(items), len(items), meter) for part in found]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "decoding in threads, which is slower: the shared-memory folder /dev/shm is full" in meter.notes[0]
    assert len(found) == IMAGES and same(found, wanted)
    assert names_in_shared_memory() <= shared


def names_in_shared_memory() -> set[str]:
    """Names of torch's files whose process has ended."""
    files = {file.name for file in Path("/dev/shm").glob("torch_*")}
    return {name for name in files if not Path("/proc", name.split("_")[1]).exists()}


def same(found: list[Any], wanted: list[Any]) -> bool:
    return all(
        a == b if isinstance(a, ItemFailure) else np.array_equal(a["pixel_values"], b["pixel_values"])
        for a, b in zip(found, wanted, strict=True)
    )


class Uneven(ClipExtractor):
    """Images of several sizes, as tensors: they are not stacked."""

    def prepare(self, image: Any) -> Any:
        return {"pixel_values": torch.zeros(3, 1 + sum(image.getpixel((0, 0))) % 5)}


Uneven.__module__ = ClipExtractor.__module__


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="open files are counted in /proc")
def test_images_of_several_sizes_keep_no_file_open(clip_folder: Path, folder: Path) -> None:
    extractor = tiny(Uneven, clip_folder)
    items = items_of(folder, extractor)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    with Decoder(extractor, folder, 2) as decoder:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 100, before[1]))
            found = [part for found in decoder.run(jobs_of(items), len(items), Meter()) for part in found]
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
    shapes = {part["pixel_values"].shape for part in found if not isinstance(part, ItemFailure)}
    assert len(found) == IMAGES and len(shapes) > 1


def _in_daemon(model: Path, folder: Path, send: Any) -> None:
    torch.set_num_threads(1)
    extractor, meter = tiny(ClipExtractor, model), Meter()
    items = items_of(folder, extractor)
    with Decoder(extractor, folder, 2) as decoder:
        send.send((sum(map(len, decoder.run(jobs_of(items), len(items), meter))), meter.notes))


def test_a_daemonic_process_decodes_in_threads_and_says_so(clip_folder: Path, folder: Path) -> None:
    context = multiprocessing.get_context("fork")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=_in_daemon, args=(clip_folder, folder, send), daemon=True)
    process.start()
    assert receive.poll(60)
    count, notes = receive.recv()
    process.join()
    assert count == IMAGES and "docs/cluster.md" in notes[0]


def test_what_is_sent_to_a_started_process_has_no_network_and_prepares_alike(clip_folder: Path, folder: Path) -> None:
    extractor = tiny(ClipExtractor, clip_folder)
    items = items_of(folder, extractor)[:8]
    sent = pickle.dumps(without_model(extractor))  # a spawned process gets this
    assert len(sent) < 50_000 < sum(p.nbytes for p in extractor.model.parameters())
    with Decoder(extractor, folder, 0) as one, Decoder(pickle.loads(sent), folder, 0) as two:
        first, second = (next(decoder.run([items], 8, Meter())) for decoder in (one, two))
    assert same(first, second)


def test_few_images_start_no_process(load: Load, clip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def never(*args: object) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(multiprocessing.process.BaseProcess, "start", never)
    report = extract(
        build_dataset(tmp_path / "images", images=63),
        load("clip", clip_folder),
        tmp_path / "stores",
        workers=8,
        progress="silent",
    )
    assert report.tables["image"].extracted == 63
