"""Stage 1: bring a store up to date with a dataset. Resumable at every shard; run it again and only the rest is done."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch

from cache import Store, StoreWriter, store_path
from manifests.errors import FashionNTMError
from manifests.schema import Dataset
from pipeline.device import describe
from pipeline.extraction.batches import Task
from pipeline.extraction.commits import Commits
from pipeline.extraction.digests import NAME as DIGESTS
from pipeline.extraction.digests import DigestCache
from pipeline.extraction.engine import TooManyFailures, process
from pipeline.extraction.extractors.base import Extractor
from pipeline.extraction.interrupts import gentle_interrupt
from pipeline.extraction.meter import Meter
from pipeline.extraction.plan import Plan, plan_extraction
from pipeline.extraction.probe import DEFAULT_BATCH, best_size, choose_batch_size, default_workers, recorded_batch_size
from pipeline.extraction.progress import Mode, Progress, make_progress
from pipeline.extraction.report import Report, left_out, report_of
from pipeline.extraction.runner import Outcome

__all__ = ["ExtractionError", "Interrupted", "Report", "TooManyFailures", "extract"]


class ExtractionError(FashionNTMError):
    """Nothing could be extracted of a whole table."""


class Interrupted(FashionNTMError):
    """The user stopped the job. Every committed row is kept."""

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
    crew: Any = None,
) -> Report:
    """Compute every missing row of ``dataset`` for ``extractor`` and commit it to the store below ``stores``.

    ``batch_size``: items a forward pass (halved when memory is short); "auto" keeps the size of the store's last
    session on this device, else measures. ``shard_rows``: rows a commit. ``workers``: threads that read, decode and
    tokenise (0: everything in one thread; None: the CPUs that the model leaves free). ``max_failures``: raise
    TooManyFailures beyond it. ``check``: called before the first forward pass when there is work; what it gives is
    recorded with the session. ``crew``: a ``distributed.Crew`` that computes the shards instead of this process.
    An item that fails is recorded in the ledger with stage and reason, and the job goes on.

    Raises ManifestError (nothing to read), Interrupted on Ctrl-C, ExtractionError when a table gets no row at all, and
    the store's own errors.
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
    """One call of ``extract``."""

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
        crew: Any,
    ) -> Report:
        dataset, extractor, meter = self.dataset, self.extractor, self.meter
        fields, device = extractor.semantic(), describe(extractor.device)
        path = store_path(self.stores, dataset.name, extractor.name, fields)
        execution = {
            "batch_size": batch_size, "shard_rows": shard_rows, "workers": workers, "device": device,
            "threads": torch.get_num_threads(), "torch": torch.__version__,
        }  # fmt: skip

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

        plan, cut = None if path.exists() else plan_with(None), extractor.cut  # a dataset without images makes no store
        with StoreWriter(
            path, dataset=dataset.name, extractor=extractor.name, fields=fields, execution=execution
        ) as writer:
            plan = plan or plan_with(writer)
            report = report_of(path, plan)
            meter.total, meter.unusable = plan.todo, sum(len(t.unusable) for t in plan.tables.values())
            if plan.todo:
                size, rates = self._batch_size(batch_size, plan, writer.manifest.execution, device)
                probed = {"batch_probe": {str(n): round(rate, 1) for n, rate in rates.items()}} if rates else {}
                writer.note({"batch_size": size, **probed, **check(plan)})
            writer.bind(plan.catalogue)
            _settle_failures(writer, plan)
            if max_failures is not None and meter.unusable > max_failures:
                raise TooManyFailures(f"{meter.unusable} items cannot be read, more than --max-failures {max_failures}")
            tasks = [task for table in plan.tables.values() for task in table.tasks(shard_rows)]
            meter.restart()
            try:
                if tasks and crew is not None:
                    cut -= crew.work(self, writer, report, tasks, size, workers, max_failures)
                elif tasks:
                    self._work(writer, report, tasks, size, workers, max_failures)
            finally:
                self._read_again(path)
            report.left_out = left_out(dataset, writer.failures()) if report.failed else {}
        report.cut = extractor.cut - cut
        report.bytes = Store.open(path).nbytes
        report.seconds = {**meter.seconds, "wall": time.perf_counter() - began}
        _refuse_empty(report, plan)
        return report

    def _batch_size(
        self, asked: int | Literal["auto"], plan: Plan, execution: Any, device: str
    ) -> tuple[int, dict[int, float]]:
        """The batch size, and rows a second by size where it was measured."""
        if asked != "auto":
            return asked, {}
        before = recorded_batch_size(execution, device)
        if before is not None:
            return before, {}
        self.meter.now = "measuring the batch size"
        rates = choose_batch_size(self.extractor, {n: t.todo for n, t in plan.tables.items()}, self.root)
        return (best_size(rates) if rates else DEFAULT_BATCH), rates

    def _read_again(self, path: Path) -> None:
        """A file whose bytes were not those of its remembered digest is hashed anew next time."""
        if self.changed and self.root is not None:
            digests = DigestCache(path.parent / DIGESTS, self.root)
            digests.forget(self.changed)
            digests.save()

    def _work(
        self,
        writer: StoreWriter,
        report: Report,
        tasks: list[Task],
        batch_size: int,
        workers: int,
        max_failures: int | None,
    ) -> None:
        """The tasks by this process: the engine here, the commits in a thread of their own."""

        def commit(outcome: Outcome) -> None:
            with self.meter.time("write"):
                _commit(writer, report, outcome)
            self.kept += len(outcome)
            self.changed |= {f.item.file for f in outcome.failures if f.stage == "read" and f.item.file}

        with gentle_interrupt() as stop_if_asked, Commits(commit, threaded=workers > 0) as commits:

            def after_batch() -> None:
                self.display.update()
                stop_if_asked()

            outcomes = process(
                self.extractor, tasks, root=self.root, batch_size=batch_size, workers=workers, meter=self.meter,
                max_failures=max_failures, on_batch=after_batch,
            )  # fmt: skip
            for outcome in outcomes:
                commits.put(outcome)
        self.display.update()


def _settle_failures(writer: StoreWriter, plan: Plan) -> None:
    """Record what has no content to read, and withdraw failures that are about another content than there is now."""
    for table in plan.tables.values():
        for item in table.outdated:
            writer.clear(table.table, item)
        for failure in table.unusable:
            writer.fail(failure.table, failure.item, failure.stage, failure.reason)


def _commit(writer: StoreWriter, report: Report, outcome: Outcome) -> None:
    table = report.tables[outcome.table]
    if len(outcome):
        keys, features = outcome.rows()
        writer.commit(outcome.table, keys, features, outcome.seconds)
        table.extracted += len(outcome)
    for failure in outcome.failures:
        table.failed += 1
        report.new_failures += 1
        for name in failure.item.names:
            writer.fail(outcome.table, name, failure.stage, failure.reason, key=failure.item.key)


def _refuse_empty(report: Report, plan: Plan) -> None:
    """A table without a single row is a wrong path or a wrong model, not some bad items."""
    for name, table in report.tables.items():
        if table.requests and not table.extracted and not table.reused:
            bad: list[Any] = [*plan.tables[name].unusable]
            first = f"{bad[0].item}: {bad[0].reason}" if bad else f"the reasons are in {report.path / 'ledger.jsonl'}"
            raise ExtractionError(
                f"none of the {table.requests:,} items of table '{name}' could be extracted ({first}): check the images "
                "folder and the model"
            )
