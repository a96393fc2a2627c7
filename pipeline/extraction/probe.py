"""Short measurements before a job: the fastest batch size, and rows per second on items of the dataset."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch

from pipeline.core.device import free_memory, is_out_of_memory
from pipeline.extraction.engine import process
from pipeline.extraction.extractors.base import Extractor
from pipeline.extraction.prepare import prepare
from pipeline.extraction.progress import Meter, clock
from pipeline.extraction.work import Item, ItemFailure, ShardTask

if TYPE_CHECKING:
    from pipeline.extraction.plan import Plan

BatchSize: TypeAlias = int | Literal["auto"]
DEFAULT_BATCH = 64
_MOST_WORKERS = 16  # decoding processes per model
_SMALL = 10_000_000  # parameters of a model that computes in one thread
_FEW_ROWS = 1024  # smaller jobs are not worth a probe
_SIZES = {"cpu": (8, 16, 32, 64, 128), "other": (32, 64, 128, 256, 512, 1024)}
_ENOUGH = 0.97  # choose the smallest batch size with this fraction of the best rate
_SECONDS_A_SIZE = 0.4
_PROBE_SECONDS = 4.0  # per table


def default_workers(device: torch.device, sharing: int = 1) -> int:
    """Return the number of decoding processes: the CPUs that the model leaves free, at least one and at most 16.

    ``sharing``: worker processes of this machine that share its CPUs, each with a model of its own.
    """
    from dask.system import cpu_count  # respects the CPU affinity and a container's quota

    free = cpu_count() - (torch.get_num_threads() if device.type == "cpu" else 0)
    return max(1, min(_MOST_WORKERS, free // sharing))


def use_threads(extractor: Extractor) -> None:
    """On a CPU, compute a small model in one thread: sharing its operations costs more than it gains.

    The other CPUs decode then. A larger model uses torch's own number (OMP_NUM_THREADS).
    """
    networks = [value for value in vars(extractor).values() if isinstance(value, torch.nn.Module)]
    size = max((sum(p.numel() for p in network.parameters()) for network in networks), default=0)
    if extractor.device.type == "cpu" and size < _SMALL:
        torch.set_num_threads(1)


def recorded_batch_size(execution: Sequence[Mapping[str, Any]], device: str) -> int | None:
    """Return the batch size of the store's last session on this kind of device, for bit-identical resumed jobs."""
    for record in reversed(execution):
        settings = record.get("settings", {})
        if settings.get("device") == device and record.get("rows") and isinstance(settings.get("batch_size"), int):
            return int(settings["batch_size"])
    return None


def autotune(
    asked: BatchSize,
    todo: Mapping[str, Sequence[Item]],
    execution: Sequence[Mapping[str, Any]],
    measure: Callable[[Mapping[str, Sequence[Item]]], tuple[str, dict[int, float]]],
) -> dict[str, Any]:
    """Return the session's batch size and device, and the rates if they were measured.

    The only measured setting: ``asked``, or the size of the store's last session on this device, or the measured one.
    ``measure``: return (device, rates) of ``todo``, no rates for an empty one.
    """
    device, rates = measure({})
    size = asked if asked != "auto" else recorded_batch_size(execution, device)
    if size is None:
        device, rates = measure(todo)
        size = best_size(rates) if rates else DEFAULT_BATCH
    probed = {"batch_probe": {str(n): round(rate, 1) for n, rate in rates.items()}} if rates else {}
    return {"batch_size": size, "device": device, **probed}


def sizes(device: torch.device) -> tuple[int, ...]:
    """Return the batch sizes that are tried on a device, ascending."""
    return _SIZES.get(device.type, _SIZES["other"])


def choose_batch_size(extractor: Extractor, todo: Mapping[str, Sequence[Item]], root: Path | None) -> dict[int, float]:
    """Return rows per second by batch size, on copies of one item of the most expensive table; {} for a small job.

    ``todo``: missing items by table. Sizes double until one does not fit or two in a row bring no gain.
    """
    table = next((t for t in ("query", "target", "image", "text") if todo.get(t)), None)
    if table is None or sum(map(len, todo.values())) < _FEW_ROWS:
        return {}
    found = (prepare(extractor, [item], root, Meter())[0] for item in todo[table][:100])
    parts = next((one for one in found if not isinstance(one, ItemFailure)), None)  # of the first readable item
    if parts is None:
        return {}
    rates: dict[int, float] = {}
    calls = extractor.calls
    for size in sizes(extractor.device):
        try:
            rates[size] = _rate(extractor, table, tuple(extractor.stack([part] * size) for part in parts), size)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            error.__traceback__ = None
            free_memory(extractor.device)
            break
        best = list(rates.values())
        if len(best) > 2 and max(best[-2:]) < max(best[:-2]) / _ENOUGH:
            break
    extractor.calls = calls  # measurements are not counted
    return rates


def best_size(rates: Mapping[int, float]) -> int:
    """Return the smallest batch size within 3% of the best rate."""
    return min(size for size, rate in rates.items() if rate >= _ENOUGH * max(rates.values()))


def _rate(extractor: Extractor, table: str, parts: tuple[Sequence[Any], ...], size: int) -> float:
    """Return rows per second of repeated batches; the first is not counted unless it alone fills the time."""
    spent: list[float] = []
    while sum(spent[1:]) < _SECONDS_A_SIZE and (len(spent) != 1 or spent[0] < _SECONDS_A_SIZE):
        began = time.perf_counter()
        extractor.begin(table, *parts).numpy()
        spent.append(time.perf_counter() - began)
    kept = spent[1:] or spent
    return len(kept) * size / max(sum(kept), 1e-9)


@dataclass(frozen=True)
class Probe:
    """Rows per second by table, measured on real items, and the bottleneck stage of each."""

    batch_size: int
    workers: int
    rates: Mapping[str, float]
    slowest: Mapping[str, str]

    def seconds(self, plan: Plan) -> float:
        """Return the seconds that the missing rows of ``plan`` take on this machine."""
        return sum(len(t.todo) / self.rates[name] for name, t in plan.tables.items() if name in self.rates)

    def as_dict(self, plan: Plan) -> dict[str, Any]:
        return {**vars(self), "rates": dict(self.rates), "slowest": dict(self.slowest), "seconds": self.seconds(plan)}

    def text(self, plan: Plan) -> str:
        rates = ", ".join(f"{name} {rate:,.1f} rows/s ({self.slowest[name]})" for name, rate in self.rates.items())
        how = f"measured with batches of {self.batch_size} and {self.workers} decoding processes"
        return f"{how}: {rates or 'nothing to do'}\ntime left at these rates: {clock(self.seconds(plan))}"


def measure(extractor: Extractor, plan: Plan, root: Path | None, workers: int, batch_size: BatchSize) -> Probe:
    """Run a few batches of each table through the engine for some seconds per table; write nothing."""
    if batch_size == "auto":
        by_size = choose_batch_size(extractor, {name: table.todo for name, table in plan.tables.items()}, root)
        batch_size = best_size(by_size) if by_size else DEFAULT_BATCH
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
            deque(process(extractor, [sample], root, batch_size, workers, meter), maxlen=0)
            spent = time.perf_counter() - began
            rates[name], slowest[name] = rows / max(spent, 1e-9), meter.slowest
            if rows == len(table.todo) or spent > _PROBE_SECONDS / 2:
                break
            rows = min(len(table.todo), max(2 * rows, int(rows * _PROBE_SECONDS / max(spent, 1e-3) * 0.75)))
    extractor.calls = calls  # measurements are not counted
    return Probe(batch_size, workers, rates, slowest)
