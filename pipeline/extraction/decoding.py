"""Reading, decoding and preprocessing of images in worker processes (torch's DataLoader), in order.

Processes, because the decoders and the image processor share one interpreter lock in threads. Their results come back
as tensors in shared memory. Threads of this process do the work instead, and a note says so, where processes cannot:

- in a daemonic process, which may have no children: a Dask worker under a nanny. This project starts its local Dask
  workers non-daemonic; docs/cluster.md has the setting for others;
- when the shared-memory folder (/dev/shm) is full, or the path of the temporary folder is too long for a socket.
"""

from __future__ import annotations

import copy
import gc
import multiprocessing
import multiprocessing.connection
import multiprocessing.queues
import multiprocessing.util
import os
import signal
import sys
import threading
import time
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from manifests.errors import FashionNTMError
from manifests.text import on_one_line
from pipeline.extraction.extractors.base import Extractor
from pipeline.extraction.prefetch import in_order
from pipeline.extraction.prepare import prepare_pixels
from pipeline.extraction.progress import Meter
from pipeline.extraction.tokens import Tokens
from pipeline.extraction.transfer import Stacked, stack
from pipeline.extraction.work import Item, ItemFailure

IMAGES_A_WORKER = 64  # a process for fewer images costs more than it saves
JOBS_AHEAD = 2  # jobs per worker that are queued or finished and not yet taken
LOSSES = 3  # consecutive losses of a worker without a finished job in between, before the job stops
_START = "fork" if sys.platform == "linux" else None  # a forked process has the libraries loaded already
_LONGEST_FOLDER = 103 - len("/listener-12345678")  # bytes; macOS has sockets of 103
_CPU = torch.device("cpu")
warnings.filterwarnings("ignore", "This DataLoader will create")  # the number of processes is the user's

Job = Sequence[Item]


class DecodingError(FashionNTMError):
    """Worker processes were killed again and again."""


class Decoder(AbstractContextManager["Decoder"]):
    """Decodes jobs (lists of items) in at most ``workers`` processes, which are kept until ``close``.

    ``workers`` 0 decodes in the calling thread, as do few images.
    """

    def __init__(self, extractor: Extractor, root: Path | None, workers: int):
        self.extractor, self.root, self.workers = extractor, root, workers
        self.meter = Meter()
        self._jobs: _Jobs = _Jobs()
        self._loader: Any = None
        self._in_threads = workers > 0 and bool(multiprocessing.current_process().daemon)

    def run(self, jobs: Iterable[Job], images: int, meter: Meter) -> Iterator[list[Any]]:
        """Yield for each job, in order, the result of ``prepare_pixels``.

        ``images``: their number in all jobs. ``meter`` gets the seconds and the notes. Raises DecodingError when worker
        processes are lost again and again; then, and if it is left early, the decoder is not used again.
        """
        self.meter = meter
        workers = min(self.workers, images // IMAGES_A_WORKER)
        meter.workers = max(1, workers)
        if workers == 0 and self._loader is None:
            yield from self._here(jobs, 0)
        elif self._in_threads:
            self.meter.note("decoding in threads, as this process may have no children: see docs/cluster.md")
            yield from self._here(jobs, workers)
        else:
            yield from self._in_processes(jobs, workers)

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        self._loader = None  # DataLoader's iterator ends its workers when it is dropped

    def _here(self, jobs: Iterable[Job], threads: int) -> Iterator[list[Any]]:
        def work(job: Job) -> list[Any]:
            with self.meter.time("decode"):
                return prepare_pixels(self.extractor, job, self.root)

        for _, found in in_order(work, jobs, threads, JOBS_AHEAD * threads):
            yield found

    def _in_processes(self, jobs: Iterable[Job], workers: int) -> Iterator[list[Any]]:
        rest, losses = iter(jobs), 0
        while True:
            self._jobs.begin(rest)
            try:
                for answer in self._iterator(workers):
                    if answer is None:
                        break
                    seconds, found = _unpacked(answer[0])
                    self.meter.add("decode", seconds)
                    self.extractor.noted.update(answer[1])
                    self._jobs.waiting.popleft()
                    losses = 0
                    yield found
                else:
                    return
                full = "the shared-memory folder /dev/shm is full (docker run --shm-size=1g)"
            except (EOFError, ConnectionError, RuntimeError) as error:  # the images' memory is gone with the process
                losses += 1
                self._lost(error, losses)
                full = ""
            except OSError as error:  # no semaphore, no process
                full = on_one_line(error)
            rest = chain(list(self._jobs.waiting), rest)  # not yet done: once more
            self.close()
            if full:
                self.meter.note(f"decoding in threads, which is slower: {full}")
                self._in_threads = True
                yield from self._here(rest, workers)
                return

    def _iterator(self, workers: int) -> Iterator[Any]:
        if self._loader is None:
            _make_socket_folder()
            jobs: Any = {"batch_size": None, "sampler": self._jobs, "collate_fn": _unchanged}
            jobs["generator"] = torch.Generator()  # the global one decides the user's random numbers
            pool: Any = {"num_workers": workers, "prefetch_factor": JOBS_AHEAD, "persistent_workers": True}
            pool |= {"worker_init_fn": _begin, "multiprocessing_context": _START}
            self._loader = DataLoader(_Images(without_model(self.extractor), self.root), **jobs, **pool)
        with _signals_kept():
            return iter(self._loader)

    def _lost(self, error: Exception, losses: int) -> None:
        if isinstance(error, RuntimeError) and "DataLoader worker" not in str(error):
            raise error
        found = getattr(self._loader._iterator, "_workers", ())
        ended = multiprocessing.connection.wait([worker.sentinel for worker in found], timeout=1)
        for worker in found:
            if worker.sentinel in ended:
                worker.join(1)  # its files are closed a moment before its exit code is known
        codes = {worker.exitcode for worker in found if not worker.is_alive()} - {None, 0}
        how = ", ".join(f"signal {-code}" if code < 0 else f"exit code {code}" for code in sorted(codes)) or "unknown"
        if losses >= LOSSES:
            item = self._jobs.waiting[0][0]
            what = f"a decoding process was lost {losses} times in a row ({how})"
            where = f"at image {item.names[0]!r} ({item.file}) or after it"
            fix = "signal 9 is mostly a lack of memory; try fewer with --workers, or --workers 0 for none"
            raise DecodingError(f"{what}, {where}: {fix}") from None
        self.meter.note(f"a decoding process was lost ({how}): its images are decoded again")


class _Jobs(Iterable[Job]):
    """Sampler of the jobs: DataLoader takes them ahead of their results. ``waiting``: taken, without a result."""

    def __init__(self) -> None:
        self.waiting: deque[Job] = deque()
        self._source: Iterator[Job] = iter(())

    def begin(self, source: Iterator[Job]) -> None:
        self.waiting, self._source = deque(), source

    def __iter__(self) -> Iterator[Job]:
        for job in self._source:
            self.waiting.append(job)
            yield job


class _Images(Dataset[Any]):
    """What a worker process has: an "index" is a job, an "element" its result in shared memory, None if that is full."""

    def __init__(self, extractor: Extractor, root: Path | None):
        self.extractor, self.root = extractor, root

    def __getitem__(self, job: Job) -> Any:
        began = time.perf_counter()
        found = prepare_pixels(self.extractor, job, self.root)
        notes, self.extractor.noted = self.extractor.noted, {}
        try:
            return _packed(found, began), notes
        except RuntimeError:  # no space left in /dev/shm: the job is done again elsewhere
            _remove_unshared()
            return None


def _make_socket_folder() -> None:
    """Make the folder of the workers' sockets, which pass shared memory; one of a worker's own would outlive its kill.

    Raises OSError if its path is too long for a socket: multiprocessing would drop every result, and the job would hang.
    """
    folder = multiprocessing.util.get_temp_dir()
    passed = torch.multiprocessing.get_sharing_strategy() == "file_descriptor" and sys.platform != "win32"
    if passed and len(os.fsencode(folder)) > _LONGEST_FOLDER:
        raise OSError(f"the path {folder} is too long for a socket: set TMPDIR to a shorter one")


def without_model(extractor: Extractor) -> Extractor:
    """Return a copy that can only ``prepare``: without networks and tokenizer, small enough to send to a process."""
    light = copy.copy(extractor)
    for name, value in vars(extractor).items():
        if isinstance(value, torch.nn.Module | Tokens):
            setattr(light, name, None)
    light.noted = {}
    return light


def _packed(found: list[Any], began: float) -> tuple[float, list[Any], dict[str, torch.Tensor] | None, bool]:
    """Return (seconds, results, arrays of the good ones stacked in shared memory, whether these are bare arrays).

    Arrays that cannot be stacked stay in the results. Raises RuntimeError without space for shared memory.
    """
    good = [f for f in found if not isinstance(f, ItemFailure)]
    bare = all(isinstance(f, np.ndarray) for f in good)
    stacked = stack([{"": f} for f in good] if bare else good, _CPU)
    if not isinstance(stacked, Stacked):
        _mapped(torch.Tensor.share_memory_, good)
        return time.perf_counter() - began, found, None, False
    tensors = {name: tensor.share_memory_() for name, tensor in stacked.tensors.items()}
    return time.perf_counter() - began, [f if isinstance(f, ItemFailure) else None for f in found], tensors, bare


def _remove_unshared() -> None:
    """Remove the files of this process that torch made in vain; it removes the names of others once they are mapped."""
    if torch.multiprocessing.get_sharing_strategy() == "file_descriptor":
        for file in Path("/dev/shm").glob(f"torch_{os.getpid()}_*"):
            file.unlink(missing_ok=True)


def _mapped(function: Callable[[torch.Tensor], torch.Tensor], value: Any) -> Any:
    """Return ``value``, nested lists and dicts, with ``function`` applied to its tensors."""
    if isinstance(value, torch.Tensor):
        return function(value)
    if isinstance(value, dict):
        return {name: _mapped(function, part) for name, part in value.items()}
    return [_mapped(function, part) for part in value] if isinstance(value, list) else value


def _unpacked(answer: tuple[float, list[Any], dict[str, torch.Tensor] | None, bool]) -> tuple[float, list[Any]]:
    seconds, found, tensors, bare = answer
    if tensors is None:
        return seconds, _mapped(torch.Tensor.clone, found)  # in shared memory, each tensor keeps a file open
    good = iter(Stacked(tensors))
    rows = (row[""] for row in good) if bare else good
    return seconds, [f if f is not None else next(rows) for f in found]


def _unchanged(answer: Any) -> Any:
    return answer


def _begin(worker: int) -> None:
    """Start of a worker: nothing inherited is collected, above all no tensor of a device.

    A result that cannot be sent (no open file is left) ends the process: the queue would drop it, and the job hang.
    """
    gc.freeze()
    multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(_cannot_send)  # type: ignore[attr-defined]


def _cannot_send(error: Exception, answer: Any) -> None:
    traceback.print_exception(error)
    sys.stderr.flush()
    os._exit(1)


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Start processes that are deaf to Ctrl-C, which goes to the whole group of a terminal: this process ends them.

    Also undo DataLoader's handler of SIGCHLD, which raises the loss of a process anywhere in the main thread; ``run``
    reports it where the result is awaited.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    handler = signal.getsignal(signal.SIGCHLD)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if handler is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGCHLD, handler)
