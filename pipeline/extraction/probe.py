"""Short measurements before a job: the batch size that is fastest here, and rows a second on the dataset's own items."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pipeline.core.device import free_memory, is_out_of_memory
from pipeline.extraction.batches import ShardTask, collate_for
from pipeline.extraction.engine import process
from pipeline.extraction.extractors.base import Extractor
from pipeline.extraction.meter import Meter
from pipeline.extraction.prepare import ItemFailure, prepare
from pipeline.extraction.work import Item

if TYPE_CHECKING:
    from pipeline.extraction.plan import Plan

DEFAULT_BATCH = 64
_FEW_ROWS = 1024  # a job this small ends before a probe pays
_SIZES = {"cpu": (8, 16, 32, 64, 128), "other": (32, 64, 128, 256, 512, 1024)}
_ENOUGH = 0.97  # the smallest batch that reaches this part of the best rate is taken
_SECONDS_A_SIZE = 0.4
_PROBE_SECONDS = 4.0  # of each table


def default_workers(device: torch.device) -> int:
    """Threads that decode: the CPUs that the model leaves free."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(16, cpus - torch.get_num_threads() if device.type == "cpu" else cpus))


def recorded_batch_size(execution: Sequence[Mapping[str, Any]], device: str) -> int | None:
    """The batch size of the store's last session on this kind of device: a resumed job keeps it, and so its bits."""
    for record in reversed(execution):
        settings = record.get("settings", {})
        if settings.get("device") == device and record.get("rows") and isinstance(settings.get("batch_size"), int):
            return int(settings["batch_size"])
    return None


def choose_batch_size(extractor: Extractor, todo: Mapping[str, Sequence[Item]], root: Path | None) -> dict[int, float]:
    """Rows a second of the model by batch size, on copies of one item of the dearest table; {} when not worth it.

    ``todo``: items to do by table. Sizes double until one does not fit or two in a row gain nothing.
    """
    table = next((t for t in ("query", "target", "image", "text") if todo.get(t)), None)
    if table is None or sum(map(len, todo.values())) < _FEW_ROWS:
        return {}
    parts = _one(extractor, todo[table], root)
    if parts is None:
        return {}
    collate = collate_for(extractor.device) if extractor.stacks else list
    rates: dict[int, float] = {}
    calls = extractor.calls
    for size in _SIZES.get(extractor.device.type, _SIZES["other"]):
        try:
            rates[size] = _rate(extractor, table, tuple(collate([part] * size) for part in parts), size)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            error.__traceback__ = None
            free_memory(extractor.device)
            break
        best = list(rates.values())
        if len(best) > 2 and max(best[-2:]) < max(best[:-2]) / _ENOUGH:
            break
    extractor.calls = calls  # measuring is no extraction
    return rates


def best_size(rates: Mapping[int, float]) -> int:
    """The smallest batch size within 3% of the fastest."""
    return min(size for size, rate in rates.items() if rate >= _ENOUGH * max(rates.values()))


def _one(extractor: Extractor, items: Sequence[Item], root: Path | None) -> list[Any] | None:
    """The prepared parts of the first item that can be read."""
    for item in items[:100]:
        (found,) = prepare(extractor, [item], root, Meter())
        if not isinstance(found, ItemFailure):
            return found
    return None


def _rate(extractor: Extractor, table: str, parts: tuple[Sequence[Any], ...], size: int) -> float:
    """Rows a second of one forward pass after another; the first is left out unless it alone took long enough."""
    spent: list[float] = []
    while sum(spent[1:]) < _SECONDS_A_SIZE and (len(spent) != 1 or spent[0] < _SECONDS_A_SIZE):
        began = time.perf_counter()
        extractor.begin(table, *parts).numpy()
        spent.append(time.perf_counter() - began)
    kept = spent[1:] or spent
    return len(kept) * size / max(sum(kept), 1e-9)


@dataclass(frozen=True)
class Probe:
    """Rows a second by table, measured with the real items, and by which stage they were bound."""

    batch_size: int
    workers: int
    rates: Mapping[str, float]
    slowest: Mapping[str, str]

    def seconds(self, plan: Plan) -> float:
        """Time left for everything that ``plan`` still has to do on this machine."""
        return sum(len(t.todo) / self.rates[name] for name, t in plan.tables.items() if name in self.rates)

    def as_dict(self, plan: Plan) -> dict[str, Any]:
        return {**vars(self), "rates": dict(self.rates), "slowest": dict(self.slowest), "seconds": self.seconds(plan)}

    def text(self, plan: Plan) -> str:
        from pipeline.extraction.progress import clock

        rates = ", ".join(f"{name} {rate:,.1f} rows/s ({self.slowest[name]})" for name, rate in self.rates.items())
        return (
            f"measured with batches of {self.batch_size} and {self.workers} decoding threads: {rates or 'nothing to do'}\n"
            f"time left at these rates: {clock(self.seconds(plan))}"
        )


def measure(extractor: Extractor, plan: Plan, root: Path | None, workers: int, batch_size: int) -> Probe:
    """Run a few batches of each table's work through the engine; nothing is written. Takes some seconds a table."""
    rates: dict[str, float] = {}
    slowest: dict[str, str] = {}
    calls, root = extractor.calls, root.resolve() if root else None
    for name, table in plan.tables.items():
        if not table.todo:
            continue
        rows = min(batch_size, len(table.todo))
        while True:
            step = max(1, len(table.todo) // rows)
            sample, meter = ShardTask(name, table.todo[::step][:rows]), Meter(workers=max(1, workers))
            began = time.perf_counter()
            for _ in process(extractor, [sample], root=root, batch_size=batch_size, workers=workers, meter=meter):
                pass
            spent = time.perf_counter() - began
            rates[name], slowest[name] = rows / max(spent, 1e-9), meter.slowest
            if rows == len(table.todo) or spent > _PROBE_SECONDS / 2:
                break
            rows = min(len(table.todo), max(2 * rows, int(rows * _PROBE_SECONDS / max(spent, 1e-3) * 0.75)))
    extractor.calls = calls  # measuring is no extraction
    return Probe(batch_size, workers, rates, slowest)
