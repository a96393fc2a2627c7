"""Stage 1: bring a store up to date with a dataset. Resumable at every shard; run it again and only the rest is done."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from cache import Store, StoreWriter, store_path
from manifests.errors import FashionNTMError
from manifests.schema import Dataset
from pipeline.device import describe
from pipeline.extraction.digests import NAME as DIGESTS
from pipeline.extraction.digests import DigestCache
from pipeline.extraction.batches import Task
from pipeline.extraction.engine import TooManyFailures, process
from pipeline.extraction.extractors.base import Extractor
from pipeline.extraction.meter import Meter
from pipeline.extraction.plan import Plan, plan_extraction
from pipeline.extraction.progress import Mode, Progress, make_progress
from pipeline.extraction.runner import Outcome
from pipeline.extraction.report import Report, TableReport

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
    batch_size: int = 64,
    shard_rows: int = 4096,
    workers: int = 2,
    progress: Mode | Progress = "auto",
    max_failures: int | None = None,
    retry_failed: bool = False,
) -> Report:
    """Compute every missing row of ``dataset`` for ``extractor`` and commit it to the store below ``stores``.

    ``batch_size``: items a forward pass (halved when memory is short). ``shard_rows``: rows a commit. ``workers``:
    threads that read, decode and tokenise (0: none). ``max_failures``: raise TooManyFailures beyond it.
    An item that fails is recorded in the ledger with stage and reason, and the job goes on.

    Raises ManifestError (nothing to read), Interrupted on Ctrl-C, ExtractionError when a table gets no row at all, and
    the store's own errors.
    """
    began = time.perf_counter()
    display, meter = make_progress(progress), Meter(workers=max(1, workers), now="reading the catalogue")
    display.start(meter)
    job = _Extraction(dataset, extractor, stores, meter, display)
    try:
        return job.run(began, batch_size, shard_rows, workers, max_failures, retry_failed)
    except KeyboardInterrupt as error:
        rows = f"{job.kept:,} new rows are kept" if job.kept else "nothing was lost"
        raise Interrupted(f"interrupted: {rows}; run the same command again to resume") from error
    finally:
        display.stop()


class _Extraction:
    """One call of ``extract``."""

    def __init__(self, dataset: Dataset, extractor: Extractor, stores: Path, meter: Meter, display: Progress):
        self.dataset, self.extractor, self.stores = dataset, extractor, stores
        self.meter, self.display = meter, display
        self.kept = 0  # rows committed so far
        self.changed: set[str] = set()  # files that could not be read as planned

    def run(
        self,
        began: float,
        batch_size: int,
        shard_rows: int,
        workers: int,
        max_failures: int | None,
        retry_failed: bool,
    ) -> Report:
        dataset, extractor, meter = self.dataset, self.extractor, self.meter
        fields = extractor.semantic()
        path = store_path(self.stores, dataset.name, extractor.name, fields)
        execution = {
            "batch_size": batch_size, "shard_rows": shard_rows, "workers": workers,
            "device": describe(extractor.device), "threads": torch.get_num_threads(), "torch": torch.__version__,
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
            report = _report(path, plan)
            meter.total, meter.unusable = plan.todo, sum(len(t.unusable) for t in plan.tables.values())
            writer.bind(plan.catalogue)
            _settle_failures(writer, plan)
            try:
                self._work(writer, report, plan, shard_rows, batch_size, workers, max_failures)
            finally:
                self._read_again(path)
        report.cut = extractor.cut - cut
        report.bytes = Store.open(path).nbytes
        report.seconds = {**meter.seconds, "wall": time.perf_counter() - began}
        _refuse_empty(report, plan)
        return report

    def _read_again(self, path: Path) -> None:
        """A file whose bytes were not those of its remembered digest is hashed anew next time."""
        if self.changed and self.dataset.images_root is not None:
            digests = DigestCache(path.parent / DIGESTS, self.dataset.images_root.resolve())
            digests.forget(self.changed)
            digests.save()

    def _work(
        self,
        writer: StoreWriter,
        report: Report,
        plan: Plan,
        shard_rows: int,
        batch_size: int,
        workers: int,
        max_failures: int | None,
    ) -> None:
        meter, root = self.meter, self.dataset.images_root
        meter.restart()
        if max_failures is not None and meter.unusable > max_failures:
            raise TooManyFailures(f"{meter.unusable} items cannot be read, more than --max-failures {max_failures}")
        outcomes = process(
            self.extractor, list(_tasks(plan, shard_rows)), root=root.resolve() if root else None, batch_size=batch_size, workers=workers,
            meter=meter, max_failures=max_failures, on_batch=self.display.update,
        )  # fmt: skip
        for outcome in outcomes:
            with meter.time("write"):
                _commit(writer, report, outcome)
            self.kept += len(outcome)
            self.changed |= {f.item.file for f in outcome.failures if f.stage == "read" and f.item.file}
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


def _tasks(plan: Plan, shard_rows: int) -> Iterator[Task]:
    for table in plan.tables.values():
        for start in range(0, len(table.todo), shard_rows):
            yield Task(table.table, table.todo[start : start + shard_rows])


def _report(path: Path, plan: Plan) -> Report:
    tables = {
        name: TableReport(t.requests, t.unique, t.done, failed=t.failed, unusable=len(t.unusable))
        for name, t in plan.tables.items()
    }
    return Report(path, plan.fingerprint, tables, {name: t.reason for name, t in plan.tables.items()})


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
