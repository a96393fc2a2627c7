"""Distributed stage 1: shards are Dask tasks, workers write files into the shared store, one coordinator commits.

The coordinator splits the work (``TablePlan.tasks``) and commits in that order. The store is therefore byte-identical
for any number of workers, also after some were lost: Dask reassigns the shards of a lost worker.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass, field
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import torch

from cache import Receipt
from manifests.errors import FashionNTMError
from manifests.schema import RunSpec
from pipeline.core.cluster import ClusterError, connect, lost, wait_for_workers
from pipeline.extraction import worker
from pipeline.extraction.work import Hook, Item, ItemFailure, ShardTask
from pipeline.extraction.worker import Setting

if TYPE_CHECKING:
    from distributed import Client, Future

Note = Callable[[str], None]
_SHARDS_AT_ONCE = 2  # per local process: one in the model, the other being prepared or written
_SAMPLE = 2048  # items sent to the worker that measures the batch size
_A_WORKER = 4  # uncommitted shards submitted per worker: running, queued, or waiting for their turn to be committed
_LOOK = 0.5  # seconds between checks for Ctrl-C


@dataclass
class Shard:
    """Finished task: its number in the job, the receipt of its file (None without rows), and its failures."""

    task: int
    receipt: Receipt | None
    failures: list[ItemFailure]
    long: list[Item]  # items with a truncated text
    noted: list[tuple[Item, str]]  # items with a remark on their image's decoding
    seconds: dict[str, float]
    process: str
    notes: Sequence[str] = ()

    def __len__(self) -> int:
        return self.receipt.rows if self.receipt is not None else 0


@dataclass
class Cluster:
    """Workers of one cluster, for one spec. ``local``: their number if this process started them. ``form``: format of
    the image towers."""

    client: Client
    spec: dict[str, Any]
    device: str
    local: int = 0
    form: str = "plain"
    jpeg_decoder: str = ""  # of the worker that was asked last, see ``Extractor.jpeg_decoder``
    calls: dict[str, int] = field(default_factory=dict)  # encoder calls so far by worker process
    _cut: dict[str, int] = field(default_factory=dict)
    _present: set[str] = field(default_factory=set)  # addresses of the workers

    @property
    def size(self) -> int:
        """Current number of worker processes."""
        return len(self.client.nthreads())

    @property
    def cut(self) -> int:
        """Number of truncated texts, summed over the workers."""
        return sum(self._cut.values())

    def setting(self, fields: Mapping[str, Any], store: Path, root: Path | None, workers: int | None) -> Setting:
        """Return the settings of every task. Workers of one machine share its CPUs."""
        threads = max(1, torch.get_num_threads() // self.local) if self.local else None
        hosts = Counter(urlsplit(address).hostname for address in self.client.nthreads())
        images, sharing = str(root) if root else None, self.local or max(hosts.values(), default=1)
        place = str(store.resolve())
        return Setting(self.spec, self.device, dict(fields), place, images, 0, workers, threads, sharing, self.form)

    def batch_sizes(self, setting: Setting, todo: Mapping[str, Sequence[Item]]) -> tuple[str, dict[int, float]]:
        """Return (device, rows per second by batch size), measured by one worker; no rates if ``todo`` is empty."""
        sample = {name: [astuple(item) for item in items[:_SAMPLE]] for name, items in todo.items()}
        answer = self._result(self.client.submit(worker.measure_batch, vars(setting), sample, pure=False))
        self.jpeg_decoder = answer["jpeg_decoder"]
        return answer["device"], answer["rates"]

    def shards(
        self, setting: Setting, tasks: Sequence[ShardTask], first: Callable[[str], int], check: Hook, note: Note
    ) -> Iterator[Shard]:
        """Yield the finished tasks in order. ``first``: number of a table's next shard; ``check`` may raise to stop;
        ``note`` gets a line for each worker that was lost.

        When stopped, yield the finished tasks, in order but with gaps, before raising the error.
        """
        numbers = _numbers(tasks, first)
        waiting: dict[int, Future] = {}
        submitted = done = 0
        self._present = set(self.client.nthreads())
        try:
            while done < len(tasks):
                check()
                if self.client.status != "running":  # a question to a lost scheduler would wait for a minute
                    raise lost(self.client.scheduler.address)
                while submitted < len(tasks) and submitted < done + _A_WORKER * max(1, self._watch(note)):
                    task = tasks[submitted]
                    given = (vars(setting), task.table, numbers[submitted], [astuple(item) for item in task.items])
                    waiting[submitted] = self.client.submit(worker.make_shard, *given, pure=False)
                    submitted += 1
                if not self._look(waiting, done, note):
                    continue
                yield self._shard(done, tasks[done], waiting.pop(done))
                done += 1
        except (KeyboardInterrupt, FashionNTMError):
            for number, future in sorted(waiting.items()):
                if future.status == "finished":
                    yield self._shard(number, tasks[number], future)
            raise
        finally:
            self.client.cancel(list(waiting.values()))

    def _watch(self, note: Note) -> int:
        """Return the number of workers; note those that were lost since the last call."""
        present = set(self.client.nthreads())
        for address in sorted(self._present - present):
            note(f"worker {address} ended or lost its connection: its shards are computed by the others")
        self._present = present
        return len(present)

    def _look(self, waiting: Mapping[int, Future], wanted: int, note: Note) -> bool:
        """Wait briefly for any task; return whether the next one in order has ended."""
        from distributed import wait

        if waiting[wanted].done():
            return True
        if self._watch(note) == 0:
            wait_for_workers(self.client)
        try:
            with self.client.as_current():
                wait([waiting[wanted]], timeout=_LOOK)
        except TimeoutError:
            return False
        return True

    def _shard(self, number: int, task: ShardTask, future: Future) -> Shard:
        answer = self._result(future)
        name = answer["process"]
        self.calls[name] = max(self.calls.get(name, 0), answer["calls"])
        self._cut[name] = max(self._cut.get(name, 0), answer["cut"])
        failures = [ItemFailure(task.items[place], *why) for place, *why in answer["failures"]]
        receipt = Receipt(**answer["receipt"]) if answer["receipt"] else None
        long = [task.items[place] for place in answer["long"]]
        noted = [(task.items[place], remark) for place, remark in answer["noted"]]
        return Shard(number, receipt, failures, long, noted, answer["seconds"], name, answer["notes"])

    def _result(self, future: Future) -> dict[str, Any]:
        from distributed import KilledWorker

        try:
            answer = future.result()
        except KilledWorker as error:
            what = f"several workers died over the same shard (the last: {error.last_worker.address})"
            fix = "look at their logs, give them more memory or a smaller --batch-size, and run the same command again"
            raise ClusterError(f"{what}: {fix}") from None
        if "error" in answer:
            raise ClusterError(f"a worker on {answer['host']} stopped: {answer['error']}")
        return answer


def _numbers(tasks: Sequence[ShardTask], first: Callable[[str], int]) -> list[int]:
    """Return the shard numbers of tasks committed in order."""
    following = {table: count(first(table)) for table in {task.table for task in tasks}}
    return [next(following[task.table]) for task in tasks]


@contextmanager
def cluster_for(
    spec: RunSpec, device: str, scheduler: str | None = None, local: int = 0, form: str = "plain"
) -> Iterator[Cluster]:
    """Yield the workers for ``spec``: the Dask cluster at ``scheduler``, or ``local`` new processes (``core.cluster``)."""
    with connect(scheduler, local, _SHARDS_AT_ONCE) as client:
        yield Cluster(client, portable(spec), device, local, form)


def portable(spec: RunSpec) -> dict[str, Any]:
    """Return the spec as JSON values with absolute local paths, because workers have another current folder."""
    values = spec.model_dump(mode="json")
    for name, value in values["extractor"].items():
        if isinstance(value, str) and name != "name" and Path(value).expanduser().is_dir():
            values["extractor"][name] = str(Path(value).expanduser().resolve())
    return values
