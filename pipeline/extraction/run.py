"""Stage 1: bring a store up to date with a dataset. Resumable at every shard; existing rows are not computed again."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from cache import Store, StoreWriter, store_path
from manifests.errors import FashionNTMError, most_frequent
from manifests.schema import Dataset
from pipeline.core.device import describe
from pipeline.core.digests import NAME as DIGESTS
from pipeline.core.digests import DigestCache
from pipeline.extraction.batches import ShardTask
from pipeline.extraction.commits import Commits
from pipeline.extraction.engine import TooManyFailures, process
from pipeline.extraction.extractors.base import Extractor
from pipeline.extraction.interrupts import gentle_interrupt
from pipeline.extraction.meter import Meter
from pipeline.extraction.plan import Plan, plan_extraction
from pipeline.extraction.prepare import ItemFailure
from pipeline.extraction.probe import DEFAULT_BATCH, best_size, choose_batch_size, default_workers, recorded_batch_size
from pipeline.extraction.progress import Mode, Progress, make_progress
from pipeline.extraction.report import Report, left_out, report_of
from pipeline.extraction.runner import Outcome
from pipeline.extraction.tolerance import recorded
from pipeline.extraction.work import Item

if TYPE_CHECKING:
    from pipeline.extraction.distributed import Cluster
    from pipeline.extraction.worker import Setting

__all__ = ["ExtractionError", "Interrupted", "Report", "TooManyFailures", "extract"]


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
    batch_size: int | Literal["auto"] = DEFAULT_BATCH,
    shard_rows: int = 4096,
    workers: int | None = 2,
    progress: Mode | Progress = "auto",
    max_failures: int | None = None,
    retry_failed: bool = False,
    check: Callable[[Plan], Mapping[str, Any]] = lambda plan: {},
    crew: Cluster | None = None,
) -> Report:
    """Compute every missing row of ``dataset`` for ``extractor`` and commit it to the store below ``stores``.

    ``batch_size``: items per batch (halved when memory runs out); "auto" keeps the size of the store's last session on
    this device, or measures. ``shard_rows``: rows per commit. ``workers``: threads that read, decode and tokenize
    (0: no extra thread; None: the CPUs that the model leaves free). ``max_failures``: raise TooManyFailures beyond this
    number. ``check``: called before the first batch if there is work; its result is recorded with the session.
    ``crew``: cluster workers that compute the shards instead of this process.
    A failed item is recorded in the ledger with stage and reason, and the job continues.

    Raises ManifestError (nothing to read), Interrupted (Ctrl-C), ExtractionError (a table without a single row) and
    the errors of the store.
    """
    began = time.perf_counter()
    workers = default_workers(extractor.device) if workers is None else workers
    display, meter = make_progress(progress), Meter(workers=max(1, workers), now="reading the catalogue")
    display.start(meter)
    job = _Extraction(dataset, extractor, stores, meter, display)
    try:
        return job.run(began, batch_size, shard_rows, workers, max_failures, retry_failed, check, crew)
    except KeyboardInterrupt as error:
        rows = f"{job.kept:,} new rows are kept" if job.kept else "nothing was lost"
        raise Interrupted(f"interrupted: {rows}; run the same command again to resume") from error
    finally:
        display.stop()


class _Extraction:
    """State of one ``extract`` call."""

    def __init__(self, dataset: Dataset, extractor: Extractor, stores: Path, meter: Meter, display: Progress):
        self.dataset, self.extractor, self.stores = dataset, extractor, stores
        self.root = dataset.images_root.resolve() if dataset.images_root else None
        self.meter, self.display = meter, display
        self.kept = 0  # rows committed so far
        self.changed: set[str] = set()  # files that could not be read as planned

    def run(
        self,
        began: float,
        batch_size: int | Literal["auto"],
        shard_rows: int,
        workers: int,
        max_failures: int | None,
        retry_failed: bool,
        check: Callable[[Plan], Mapping[str, Any]],
        crew: Cluster | None,
    ) -> Report:
        dataset, extractor, meter = self.dataset, self.extractor, self.meter
        fields = extractor.semantic()
        path = store_path(self.stores, dataset.name, extractor.name, fields)
        setting = crew.setting(fields, path, self.root, workers) if crew is not None else None
        execution = {
            "batch_size": batch_size,
            "shard_rows": shard_rows,
            "workers": workers,
            "device": describe(extractor.device),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        }
        execution |= recorded(extractor, dataset)

        def plan_with(writer: StoreWriter | None) -> Plan:
            with meter.time("hash"):
                return plan_extraction(
                    dataset,
                    extractor,
                    writer,
                    stores=self.stores,
                    workers=workers,
                    retry_failed=retry_failed,
                    remember=True,
                )

        plan, cut = None if path.exists() else plan_with(None), extractor.cut  # raises before a store is created
        with StoreWriter(
            path, dataset=dataset.name, extractor=extractor.name, fields=fields, execution=execution
        ) as writer:
            plan = plan or plan_with(writer)
            report = report_of(path, plan)
            report.catalogue = plan.catalogue
            meter.total, meter.unusable = plan.todo, sum(len(t.unusable) for t in plan.tables.values())
            if plan.todo:
                size = self._batch_size(batch_size, plan, writer, crew, setting)
                report.checked = dict(check(plan))
                writer.note(report.checked)
            writer.bind(plan.catalogue)
            _settle_failures(writer, plan)
            if max_failures is not None and meter.unusable > max_failures:
                raise TooManyFailures(meter.unusable, max_failures, "cannot be read")
            tasks = [task for table in plan.tables.values() for task in table.tasks(shard_rows)]
            meter.restart()
            try:
                if tasks and crew is not None and setting is not None:
                    self._by_crew(crew, replace(setting, batch_size=size), writer, report, tasks, max_failures)
                    cut -= crew.cut
                elif tasks:
                    self._work(writer, report, tasks, size, workers, max_failures)
            finally:
                self._read_again(path)
            worked = time.perf_counter() - meter.started
            report.left_out = left_out(dataset, writer.failures()) if report.failed else {}
        report.cut = extractor.cut - cut
        report.bytes = Store.open(path).nbytes
        report.busy = {
            stage: seconds / meter.hands(stage) for stage, seconds in meter.seconds.items() if stage != "hash"
        }
        report.seconds = {**meter.seconds, "work": worked, "wall": time.perf_counter() - began}
        _refuse_empty(report, plan)
        return report

    def _batch_size(
        self,
        asked: int | Literal["auto"],
        plan: Plan,
        writer: StoreWriter,
        crew: Cluster | None,
        setting: Setting | None,
    ) -> int:
        """Return the batch size; record it with the device and the measured rates."""
        self.meter.now = "preparing the model"
        todo = {name: table.todo for name, table in plan.tables.items()}
        device, rates = describe(self.extractor.device), {}
        if crew is not None and setting is not None:
            device, _ = crew.batch_sizes(setting, {})
        size = asked if asked != "auto" else recorded_batch_size(writer.manifest.execution, device)
        if size is None:
            self.meter.now = "measuring the batch size"
            if crew is not None and setting is not None:
                _, rates = crew.batch_sizes(setting, todo)
            else:
                rates = choose_batch_size(self.extractor, todo, self.root)
            size = best_size(rates) if rates else DEFAULT_BATCH
        probed = {"batch_probe": {str(n): round(rate, 1) for n, rate in rates.items()}} if rates else {}
        writer.note({"batch_size": size, "device": device, **probed})
        return size

    def _read_again(self, path: Path) -> None:
        """Drop the cached digests of files whose bytes had changed, so that the next run hashes them again."""
        if self.changed and self.root is not None:
            digests = DigestCache(path.parent / DIGESTS, self.root)
            digests.forget(self.changed)
            digests.save()

    def _work(
        self,
        writer: StoreWriter,
        report: Report,
        tasks: list[ShardTask],
        batch_size: int,
        workers: int,
        max_failures: int | None,
    ) -> None:
        """Run the tasks in this process and commit the shards in a separate thread."""

        def commit(outcome: Outcome) -> None:
            with self.meter.time("write"):
                if len(outcome):
                    keys, features = outcome.rows()
                    writer.commit(outcome.table, keys, features, outcome.seconds)
                self._count(writer, report, outcome.table, len(outcome), outcome.failures, outcome.long)

        with gentle_interrupt() as stop_if_asked, Commits(commit, threaded=workers > 0) as commits:

            def after_batch() -> None:
                self.display.update()
                stop_if_asked()

            outcomes = process(
                self.extractor,
                tasks,
                root=self.root,
                batch_size=batch_size,
                workers=workers,
                meter=self.meter,
                max_failures=max_failures,
                on_batch=after_batch,
            )
            with closing(outcomes):  # stops the worker threads if a commit fails
                for outcome in outcomes:
                    commits.put(outcome)
        self.display.update()

    def _by_crew(
        self,
        crew: Cluster,
        setting: Setting,
        writer: StoreWriter,
        report: Report,
        tasks: list[ShardTask],
        max_failures: int | None,
    ) -> None:
        """Run the tasks on the workers of a cluster; commit their shards here, in order."""
        meter = self.meter
        meter.now, meter.machines = f"{crew.size} workers", max(1, crew.size)

        with gentle_interrupt() as stop_if_asked:

            def look() -> None:
                stop_if_asked()
                if max_failures is not None and meter.failed + meter.unusable > max_failures:
                    raise TooManyFailures(meter.failed + meter.unusable, max_failures)

            for shard in crew.shards(setting, tasks, writer.next_number, look):
                table = tasks[shard.task].table
                for stage, seconds in shard.seconds.items():
                    meter.add(stage, seconds if stage != "write" else 0.0)  # workers write in parallel
                with meter.time("write"):
                    if shard.receipt is not None:
                        writer.adopt(shard.receipt)
                    self._count(writer, report, table, shard.rows, shard.failures, shard.long)
                report.workers[shard.process] = report.workers.get(shard.process, 0) + 1
                meter.done, meter.failed = meter.done + shard.rows, meter.failed + len(shard.failures)
                meter.machines = max(1, crew.size)
                self.display.update()

    def _count(
        self,
        writer: StoreWriter,
        report: Report,
        table: str,
        rows: int,
        failures: Sequence[ItemFailure],
        long: Sequence[Item],
    ) -> None:
        """Record the failures and truncated texts of a committed task in the ledger, and update the report."""
        report.tables[table].extracted += rows
        self.kept += rows
        cut = "longer than the model reads: truncated to the maximum length"  # noted in the ledger; the row exists
        found = [(name, "tokenise", cut, item.key) for item in long for name in item.names]
        found += [(name, f.stage, f.reason, f.item.key) for f in failures for name in f.item.names]
        if found:
            writer.fail_many(table, found)
        for failure in failures:
            report.tables[table].failed += 1
            report.new_failures += 1
            report.count_failure(table, failure.stage, failure.reason)
            if failure.stage == "read" and failure.item.file:
                self.changed.add(failure.item.file)


def _settle_failures(writer: StoreWriter, plan: Plan) -> None:
    """Record items without content, and clear failures of items whose content has changed since."""
    for table in plan.tables.values():
        for item in table.outdated:
            writer.clear(table.table, item)
        for failure in table.unusable:
            writer.fail(failure.table, failure.item, failure.stage, failure.reason)


def _refuse_empty(report: Report, plan: Plan) -> None:
    """Raise ExtractionError for a table without rows: the path or the model is wrong, not single items."""
    for name, table in report.tables.items():
        if table.requests and not table.extracted and not table.reused:
            record = f"the reasons are in {report.path / 'ledger.jsonl'}"
            known = f"known failures, {record}: --retry-failed tries them again" if plan.tables[name].failed else record
            why = most_frequent(report.why.get(name, ())) or known
            raise ExtractionError(
                f"none of the {table.requests:,} items of table '{name}' could be extracted ({why}): check the images "
                "folder and the model"
            )
