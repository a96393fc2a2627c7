"""Several writers and readers at once, in real processes; another machine is one whose kernel has another name."""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import cache.lease
from cache import Store, StoreBusyError, StoreError, verify
from cache.layout import LEASE, is_temporary
from cache.lease import STALE, Lease
from tests.cache.dying import die_at

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")


@pytest.fixture
def start() -> Iterator[Callable[[Callable[[], None]], int]]:
    """Starts a function in a forked process and gives its process id; whatever still lives at the end is killed."""
    started: list[int] = []

    def run(work: Callable[[], None]) -> int:
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                work()
                code = 0
            except BaseException as error:
                print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            finally:
                os._exit(code)
        started.append(pid)
        return pid

    yield run
    for pid in started:
        try:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        except (ProcessLookupError, ChildProcessError):
            pass


def stopped(pid: int) -> None:
    assert os.WIFSTOPPED(os.waitpid(pid, os.WUNTRACED)[1])


def ended(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def leases(path: Path) -> list[Path]:
    return sorted(path.glob(f"{LEASE}*"))


def age(path: Path, seconds: float) -> None:
    (lease,) = leases(path)
    os.utime(lease, (time.time() - seconds,) * 2)


@pytest.mark.parametrize("locks", ["locks", "no locks"])
def test_a_stale_lease_is_taken_over_and_its_owner_cannot_commit(
    path: Path, writer, rows, start, monkeypatch, locks: str
) -> None:
    if locks == "no locks":
        monkeypatch.setattr(cache.lease, "_locked", lambda handle: None)

    def on_another_machine() -> None:
        cache.lease._kernel = lambda: "another machine"
        with writer() as w:
            w.commit("image", *rows(0, 10))
            os.kill(os.getpid(), signal.SIGSTOP)
            for use in (
                lambda: w.commit("image", *rows(10, 10)),
                lambda: w.fail("image", "x", "decode", "late"),
                lambda: w.bind({"x": bytes(16)}),
            ):
                with pytest.raises(StoreBusyError, match=rf"expired: process {os.getppid()} on .* has it now"):
                    use()

    pid = start(on_another_machine)
    stopped(pid)
    with pytest.raises(StoreBusyError, match=rf"process {pid} on .* last sign of life \d+ s ago.* expires"):
        writer()
    age(path, STALE + 5)
    with writer() as w:
        assert leases(path)[0].name == f"{LEASE}000002"
        assert w.missing("image", rows(0, 20)[0]).sum() == 10
        w.commit("image", *rows(20, 10))
        os.kill(pid, signal.SIGCONT)
        assert ended(pid) == 0
        assert leases(path)[0].name == f"{LEASE}000002"  # the dead one did not take it along
        w.commit("image", *rows(10, 10))
        assert w.failures() == []
    assert leases(path) == [] and verify(path) == [] and Store.open(path).catalogue() == {}
    keys, features = rows(0, 30)
    store = Store.open(path)
    assert np.array_equal(store.gather("image", store.find("image", keys)), features)


@pytest.mark.parametrize("file", ["image-00001.h5", "manifest.json", "catalogue.h5"])
@pytest.mark.parametrize("asleep", ["before it looks", "after it looked"])
def test_a_writer_asleep_in_the_middle_of_publishing_publishes_nothing(
    path: Path, writer, rows, start, file: str, asleep: str
) -> None:
    """Stopped between its temporary file and the rename, or even after it saw its own lease, and its lease expired."""

    def on_another_machine() -> None:
        cache.lease._kernel = lambda: "another machine"
        with writer() as w:
            w.commit("image", *rows(0, 10))
            rename, check = os.replace, w._lease.check
            if asleep == "after it looked":

                def replace(source: Path, target: Path) -> None:
                    if Path(target).name == file:
                        os.kill(os.getpid(), signal.SIGSTOP)
                    rename(source, target)

                os.replace = replace
            else:

                def look() -> None:
                    if any(name.startswith(f".{file}.") and is_temporary(name) for name in os.listdir(path)):
                        os.kill(os.getpid(), signal.SIGSTOP)
                    check()

                w._lease.check = look
            with pytest.raises(StoreError):
                w.bind({"mine": bytes(16)}) if file == "catalogue.h5" else w.commit("image", *rows(10, 10))

    pid = start(on_another_machine)
    stopped(pid)
    age(path, STALE + 5)
    with writer() as w:
        before = w.missing("image", rows(10, 10)[0])
        w.commit("image", *rows(20, 30))
        manifest = (path / "manifest.json").read_bytes()
        os.kill(pid, signal.SIGCONT)
        assert ended(pid) == 0
        assert (path / "manifest.json").read_bytes() == manifest
        todo = rows(10, 10)
        if before.any():  # a shard that was renamed before the end of its owner was taken back
            w.commit("image", *todo)
    store = Store.open(path)
    keys, features = rows(0, 50)
    assert np.array_equal(store.gather("image", store.find("image", keys)), features)
    assert verify(path) == [] and store.tables["image"].rows == 50


def test_the_lease_of_a_process_that_died_here_is_free_at_once(path: Path, writer, rows, child) -> None:
    def die() -> None:
        writer().commit("image", *rows(0, 5))
        os.kill(os.getpid(), signal.SIGKILL)

    assert child(die) == -9
    assert len(leases(path)) == 1
    with writer() as w:
        assert not w.missing("image", rows(0, 5)[0]).any()
    assert leases(path) == []


@pytest.mark.slow
def test_a_death_at_any_step_of_taking_the_lease_keeps_nobody_waiting(path: Path, writer, child) -> None:
    writer().close()

    def take(step: int) -> None:
        die_at(step)
        lease = Lease(path)
        sys.setprofile(None)
        assert lease.path.exists()

    step = 1
    while child(partial(take, step := step + 2)) == -9:  # every second step
        writer().close()
    assert step > 20  # and not one of the first steps only


@pytest.mark.parametrize("made", [True, False])
def test_without_hard_links_a_lease_is_made_in_its_place(path: Path, writer, monkeypatch, made: bool) -> None:
    """And where another writer has swept away what was to be linked, it has the store."""

    def link(source: Path, place: Path) -> None:
        if not made:
            source.unlink()
            os.stat(source)
        raise PermissionError(1, "no hard links here")

    monkeypatch.setattr(os, "link", link)
    if made:
        with writer(), pytest.raises(StoreBusyError, match=f"process {os.getpid()}"):
            writer()
    else:
        with pytest.raises(StoreBusyError, match="run the same command again"):
            writer()
    assert leases(path) == [] and not any(map(is_temporary, os.listdir(path)))


def test_a_writer_on_this_machine_is_never_taken_for_dead(path: Path, writer) -> None:
    with writer():
        age(path, 10 * STALE)  # stopped by the user, say: the system still holds its lock
        with pytest.raises(StoreBusyError, match=rf"process {os.getpid()} .*last sign of life 60\d s ago\): wait"):
            writer()


def test_a_writer_gives_signs_of_life(path: Path, writer, monkeypatch) -> None:
    monkeypatch.setattr(cache.lease, "HEARTBEAT", 0.02)
    with writer() as w:
        age(path, 1000)
        until = time.monotonic() + 60
        while time.time() - leases(path)[0].stat().st_mtime > 900 and time.monotonic() < until:
            time.sleep(0.02)
        assert time.time() - leases(path)[0].stat().st_mtime < 900
        leases(path)[0].unlink()
        with pytest.raises(StoreBusyError, match="its lease is gone"):
            w.fail("image", "x", "decode", "y")
    assert not [t for t in threading.enumerate() if t.name == "lease" and not t.daemon]


def test_a_writer_that_was_dropped_gives_no_more_signs_of_life(path: Path, writer) -> None:
    dropped = writer()
    stop = dropped._lease._stop
    del dropped
    gc.collect()
    assert stop.is_set()
    with writer():
        assert [p.name for p in leases(path)] == [f"{LEASE}000002"]


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b'{"pid": 1}', b"\xff"])
def test_a_lease_that_cannot_be_read_counts_by_its_age(path: Path, writer, text: bytes) -> None:
    writer().close()
    (path / f"{LEASE}000007").write_bytes(text)
    with pytest.raises(StoreBusyError, match="owner unknown"):
        writer()
    age(path, STALE + 5)
    with writer():
        assert [p.name for p in leases(path)] == [f"{LEASE}000008"]


@pytest.mark.parametrize("locks", ["locks", "no locks"])
def test_four_writers_take_turns(path: Path, writer, rows, start, locks: str) -> None:
    def take_turns(number: int) -> None:
        if locks == "no locks":
            cache.lease._locked = lambda handle: None
        todo, until = [range(number * 30, number * 30 + 30)[n : n + 10] for n in (0, 10, 20)], time.monotonic() + 200
        while todo:
            assert time.monotonic() < until
            try:
                with writer() as w:
                    part = todo[0]
                    w.commit("image", *rows(part[0], 10))
                    todo.pop(0)
            except StoreBusyError:
                time.sleep(0.01)

    assert [ended(pid) for pid in [start(lambda n=n: take_turns(n)) for n in range(4)]] == [0] * 4
    keys, features = rows(0, 120)
    store = Store.open(path)
    assert np.array_equal(store.gather("image", store.find("image", keys)), features)
    assert verify(path) == [] and len(store.tables["image"].shards) == 12


def test_readers_beside_a_writer_see_only_what_is_committed(path: Path, writer, rows, start) -> None:
    """Processes, each with threads of its own, open and read while another process writes."""
    writer().close()

    def write() -> None:
        with writer() as w:
            for n in range(15):
                w.commit("image", *rows(n * 7, 7))

    def read() -> None:
        def loop() -> None:
            seen = 0
            while seen < 105:
                store = Store.open(path)
                if "image" not in store.tables:
                    continue
                keys, features = store.keys("image"), store.load("image")
                assert len(keys) >= seen and len(keys) % 7 == 0
                seen = len(keys)
                assert np.array_equal(keys, rows(0, seen)[0]) and np.array_equal(features, rows(0, seen)[1])
                assert np.array_equal(store.gather("image", np.arange(seen)[::-1]), features[::-1])
            done.append(seen)

        done: list[int] = []
        threads = [threading.Thread(target=loop) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert done == [105, 105]

    readers = [start(read) for _ in range(2)]
    assert [ended(pid) for pid in [start(write), *readers]] == [0, 0, 0]


class Rows:
    """A dataset for torch's DataLoader; opened in the parent and used before the workers start, or not."""

    def __init__(self, store: Store):
        self.store = store

    def __len__(self) -> int:
        return 600

    def __getitem__(self, n: int) -> np.ndarray:
        return self.store.gather("image", np.array([n]))[0]


@pytest.mark.parametrize("start_method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_workers_of_a_data_loader_read(three_shards: Path, rows, start_method: str) -> None:
    torch_data = pytest.importorskip("torch.utils.data")
    store = Store.open(three_shards)
    store.gather("image", np.arange(0, 600, 50))  # mapped before the workers are made
    loader = torch_data.DataLoader(Rows(store), batch_size=150, num_workers=2, multiprocessing_context=start_method)
    found = np.concatenate([batch.numpy() for batch in loader])
    assert np.array_equal(found, rows(0, 600)[1])
