"""Stage 1: bring a store up to date with a dataset. Resumable at every shard; existing rows are not computed again."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from cache import Manifest, Store, StoreWriter, store_path
from manifests.errors import FashionNTMError, most_frequent
from manifests.schema import Dataset
from pipeline.core.device import describe
from pipeline.core.image_files import DIGESTS, DigestCache
from pipeline.extraction.distributed import Cluster, Shard
from pipeline.extraction.engine import TooManyFailures, gentle_interrupt, process, stop_at
from pipeline.extraction.extractors.base import Extractor
from pipeline.extraction.jpeg import CUDA_DECODER
from pipeline.extraction.plan import Plan, plan_extraction
from pipeline.extraction.prefetch import Commits
from pipeline.extraction.probe import DEFAULT_BATCH, BatchSize, autotune, choose_batch_size, default_workers
from pipeline.extraction.progress import Meter, Mode, Progress, make_progress
from pipeline.extraction.report import Report, left_out, report_of
from pipeline.extraction.runner import Outcome
from pipeline.extraction.tolerance import recorded, recorded_decoder
from pipeline.extraction.work import Hook, Item, ShardTask

Check = Callable[[Plan], Mapping[str, Any]]


class ExtractionError(FashionNTMError):
    """No row of a table could be extracted."""


class Interrupted(FashionNTMError):
    """The user stopped the job. All committed rows are kept."""

    exit_code = 130


def extract(
    dataset: Dataset,
    extractor: Extractor,
    stores: Path,
    *,
    batch_size: BatchSize = DEFAULT_BATCH,
    shard_rows: int = 4096,
    workers: int | None = 2,
    progress: Mode | Progress = "auto",
    max_failures: int | None = None,
    retry_failed: bool = False,
    check: Check = lambda plan: {},
    cluster: Cluster | None = None,
) -> Report:
    """Compute every missing row of ``dataset`` for ``extractor`` and commit it to the store below ``stores``.

    ``batch_size``: items per batch (halved when memory runs out); "auto" keeps the size of the store's last session on
    this device, or measures. ``shard_rows``: rows per commit. ``workers``: processes that read and decode images (0: this
    process alone; None: one per CPU that the model leaves free). ``max_failures``: raise TooManyFailures beyond it.
    ``check``: called before the first batch if there is work; its result is recorded with the session. ``cluster``:
    workers that compute the shards instead. A failed item is recorded in the ledger, and the job continues.

    Raises Interrupted (Ctrl-C), ExtractionError (a table without rows), ManifestError, DecodingError, errors of the store.
    """
    job = _Job(dataset, extractor, stores, workers, max_failures, make_progress(progress), cluster)
    with job.shown():
        plan = None if job.path.exists() else job.plan(None, retry_failed)  # raises before a store is created
        with job.store(batch_size, shard_rows) as writer:
            plan = plan or job.plan(writer, retry_failed)
            size = job.check(plan, writer, batch_size, check)
            tasks = job.begin(plan, writer, shard_rows)
            with (
                gentle_interrupt() as stop_if_asked,
                job.commits(writer, tasks) as commits,
                closing(job.compute(tasks, size, writer, stop_if_asked)) as outcomes,  # ends the worker processes
            ):
                for outcome in outcomes:
                    commits.put(outcome)
        return job.report(plan)


class _Job:
    """Steps of one ``extract`` call, in order, and what they share."""

    def __init__(
        self,
        dataset: Dataset,
        extractor: Extractor,
        stores: Path,
        workers: int | None,
        max_failures: int | None,
        display: Progress,
        cluster: Cluster | None,
    ):
        self.dataset, self.extractor, self.stores, self.max_failures = dataset, extractor, stores, max_failures
        self.workers = default_workers(extractor.device) if workers is None else workers
        self.meter, self.display, self.cluster = Meter(now="reading the catalog"), display, cluster
        self.root = dataset.images_root.resolve() if dataset.images_root else None
        self.fields = extractor.semantic()
        self.path = store_path(stores, dataset.name, extractor.name, self.fields)
        self.setting = None if cluster is None else cluster.setting(self.fields, self.path, self.root, workers)
        self.began, self.cut = time.perf_counter(), extractor.cut
        self.kept = 0  # rows committed so far
        self.changed: set[str] = set()  # files that could not be read as planned

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Show the progress; report Ctrl-C as Interrupted; let the next run hash the files that have changed."""
        self.display.start(self.meter)
        try:
            yield
        except KeyboardInterrupt as error:
            rows = f"{self.kept:,} new rows are kept" if self.kept else "nothing was lost"
            raise Interrupted(f"interrupted: {rows}; run the same command again to resume") from error
        finally:
            self.display.stop()
            if self.changed and self.root is not None:
                digests = DigestCache(self.path.parent / DIGESTS, self.root)
                digests.forget(self.changed)
                digests.save()

    def plan(self, writer: StoreWriter | None, retry_failed: bool) -> Plan:
        with self.meter.time("hash"):
            how: Any = {"stores": self.stores, "workers": self.workers, "retry_failed": retry_failed}
            plan = plan_extraction(self.dataset, self.extractor, writer, **how, remember=True)
        if plan.todo and self.cluster is None:
            self.extractor.require()
        return plan

    def store(self, batch_size: BatchSize, shard_rows: int) -> StoreWriter:
        execution = {"batch_size": batch_size, "shard_rows": shard_rows, "workers": self.workers}
        execution |= recorded(self.extractor, self.dataset)
        names = {"dataset": self.dataset.name, "extractor": self.extractor.name}
        return StoreWriter(self.path, **names, fields=self.fields, execution=execution)

    def check(self, plan: Plan, writer: StoreWriter, batch_size: BatchSize, check: Check) -> int:
        """Return the batch size; record it and the result of ``check``. Nothing is done without work."""
        self.result = report_of(self.path, plan)
        if not plan.todo:
            return DEFAULT_BATCH
        self.meter.now = "preparing the model"
        todo = {name: table.todo for name, table in plan.tables.items()}
        found = autotune(batch_size, todo, writer.manifest.execution, self._measured)
        if decoder := (self.cluster or self.extractor).jpeg_decoder:
            same_decoder(writer.manifest, decoder)
            found["jpeg_decoder"] = decoder
        self.result.checked = dict(check(plan))
        writer.note({**found, **self.result.checked})
        return int(found["batch_size"])

    def _measured(self, todo: Mapping[str, Sequence[Item]]) -> tuple[str, dict[int, float]]:
        """Return (device, rows per second by batch size), measured by one worker or here."""
        if self.cluster is not None and self.setting is not None:
            return self.cluster.batch_sizes(self.setting, todo)
        return describe(self.extractor.device), choose_batch_size(self.extractor, todo, self.root) if todo else {}

    def begin(self, plan: Plan, writer: StoreWriter, shard_rows: int) -> list[ShardTask]:
        """Record the catalog and the items without content, and clear failures of items whose content has changed.

        Return the shards to compute.
        """
        meter, limit, tables = self.meter, self.max_failures, plan.tables.values()
        meter.total, meter.unusable = plan.todo, sum(len(t.unusable) for t in tables)
        writer.bind(plan.catalogue)
        for table in tables:
            for item in table.outdated:
                writer.clear(table.table, item)
            for failure in table.unusable:
                writer.fail(failure.table, failure.item, failure.stage, failure.reason)
        if limit is not None and meter.unusable > limit:
            raise TooManyFailures(meter.unusable, limit, "cannot be read")
        meter.started = time.perf_counter()  # of the rates: after hashing and loading
        return [task for table in tables for task in table.tasks(shard_rows)]

    def compute(
        self, tasks: list[ShardTask], size: int, writer: StoreWriter, stop_if_asked: Hook
    ) -> Generator[Outcome | Shard, None, None]:
        """Yield the outcome of every task, in order: from the cluster's workers, or computed in this process."""

        def after_batch() -> None:
            self.display.update()
            stop_if_asked()

        def look() -> None:
            stop_if_asked()
            stop_at(self.max_failures, self.meter)

        if not tasks:
            return
        if self.cluster is not None and self.setting is not None:
            self.meter.now, self.meter.machines = f"{self.cluster.size} workers", max(1, self.cluster.size)
            setting = replace(self.setting, batch_size=size, jpeg_decoder=self.cluster.jpeg_decoder)
            yield from self.cluster.shards(setting, tasks, writer.next_number, look, self.meter.note)
        else:
            job = (self.extractor, tasks, self.root, size, self.workers, self.meter)
            yield from process(*job, self.max_failures, after_batch)

    def commits(self, writer: StoreWriter, tasks: list[ShardTask]) -> Commits[Outcome | Shard]:
        """Return the queue that commits outcomes; in a thread of its own if the rows are computed here."""

        def commit(outcome: Outcome | Shard) -> None:
            table = tasks[outcome.task].table
            if isinstance(outcome, Shard):
                self._count_worker(outcome)
                self.display.update()
            with self.meter.time("write"):
                if isinstance(outcome, Outcome) and len(outcome):
                    writer.commit(table, *outcome.rows(), outcome.seconds)
                elif isinstance(outcome, Shard) and outcome.receipt is not None:
                    writer.adopt(outcome.receipt)
                self._count(writer, table, outcome)

        return Commits(commit, threaded=self.workers > 0 and self.cluster is None)

    def report(self, plan: Plan) -> Report:
        """Return the report. Raises ExtractionError for a table without rows."""
        report, meter, store = self.result, self.meter, Store.open(self.path)
        worked = time.perf_counter() - meter.started
        self.display.update()
        report.catalogue, report.notes = plan.catalogue, meter.notes
        report.left_out = left_out(self.dataset, store.failures()) if report.failed else {}
        report.cut = self.extractor.cut - self.cut + (self.cluster.cut if self.cluster is not None else 0)
        report.bytes, report.busy, report.slowest = store.nbytes, meter.busy, meter.slowest
        report.seconds = {**meter.seconds, "work": worked, "wall": time.perf_counter() - self.began}
        _refuse_empty(report, plan)
        return report

    def _count_worker(self, shard: Shard) -> None:
        meter, report = self.meter, self.result
        for stage, seconds in shard.seconds.items():
            meter.add(stage, seconds if stage != "write" else 0.0)  # workers write in parallel
        for note in shard.notes:
            meter.note(note)
        report.workers[shard.process] = report.workers.get(shard.process, 0) + 1
        meter.done, meter.failed = meter.done + len(shard), meter.failed + len(shard.failures)
        meter.machines = max(1, self.cluster.size if self.cluster is not None else 1)

    def _count(self, writer: StoreWriter, table: str, outcome: Outcome | Shard) -> None:
        """Record the failures and truncated texts of a committed task in the ledger, and update the report."""
        self.result.tables[table].extracted += len(outcome)
        self.kept += len(outcome)
        cut = "longer than the model reads: truncated to the maximum length"  # noted in the ledger; the row exists
        found = [(name, "tokenise", cut, item.key) for item in outcome.long for name in item.names]
        found += [(name, "decode", remark, item.key) for item, remark in outcome.noted for name in item.names]
        found += [(name, f.stage, f.reason, f.item.key) for f in outcome.failures for name in f.item.names]
        if found:
            writer.fail_many(table, found)
        for _, remark in outcome.noted:
            self.result.remarks[remark] = self.result.remarks.get(remark, 0) + 1
        for failure in outcome.failures:
            self.result.tables[table].failed += 1
            self.result.count_failure(table, failure.stage, failure.reason)
            if failure.stage == "read" and failure.item.file:
                self.changed.add(failure.item.file)


def same_decoder(manifest: Manifest, decoder: str) -> None:
    """Raise ExtractionError if the store has rows of another JPEG decoder: they are not the rows of this one."""
    before = recorded_decoder(manifest.execution)
    if before and before != decoder:
        fix = f"continue with --device {'cuda' if before == CUDA_DECODER else 'cpu'}"
        what = f"the rows of this store were decoded by {before}, this device decodes by {decoder}"
        why = f"a store has rows of one decoder: {fix}, or extract into another workspace with --out"
        raise ExtractionError(f"{what}, and {why}")


def _refuse_empty(report: Report, plan: Plan) -> None:
    """Raise ExtractionError for a table without rows: the path or the model is wrong, not single items."""
    for name, table in report.tables.items():
        if table.requests and not table.extracted and not table.reused:
            record = f"the reasons are in {report.path / 'ledger.jsonl'}"
            known = f"known failures, {record}: --retry-failed tries them again" if plan.tables[name].failed else record
            why = most_frequent(report.why.get(name, ())) or known
            what = f"none of the {table.requests:,} items of table '{name}' could be extracted ({why})"
            raise ExtractionError(f"{what}: check the images folder and the model")
