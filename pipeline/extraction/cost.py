"""What an extraction takes: memory (an upper bound), and shards, bytes and device hours of a large catalog."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from PIL import Image

from manifests.archives import MAX_BYTES
from manifests.identity import KEY_BYTES
from pipeline.extraction.decoding import IMAGES_A_WORKER, JOBS_AHEAD
from pipeline.extraction.engine import BATCHES_AHEAD
from pipeline.extraction.extractors.base import Extractor
from pipeline.extraction.images import MAX_PIXELS
from pipeline.extraction.plan import Plan

BYTES_A_SHARD_RECORD = 460  # manifest.json and ledger.jsonl together; measured, and checked by a test
DEVICES = (1, 8, 64)
SPANS = ((1, "an hour"), (24, "a day"), (168, "a week"))  # hours, name
BYTES_A_PIXEL = 26  # in decoding, of the worst kind of image (JPEG 2000 with alpha); measured, and checked by a test
PROGRAM = 1_000_000_000  # Python, torch, transformers and their buffers
PROCESS = 400_000_000  # the same in a decoding process; less where it is forked and shares them
BYTES_AN_IMAGE = 1000  # of the catalog
_SIDE = 512  # of the image whose prepared size is taken


@dataclass(frozen=True)
class Cost:
    """Cost of one image table: ``rows`` of ``width`` bytes in shards of ``shard_rows``; ``rate``: rows per second of
    one device, None if unknown; ``per_machine``: devices of a machine.

    shards = ceil(rows / shard_rows); bytes = rows * width; device hours = rows / rate / 3600.
    """

    table: str
    rows: int
    width: int
    shard_rows: int
    rate: float | None
    per_machine: int = 1

    @property
    def shards(self) -> int:
        return -(-self.rows // self.shard_rows)

    @property
    def bytes(self) -> int:
        return self.rows * self.width

    @property
    def record_bytes(self) -> int:
        """Bytes of the manifest and the ledger."""
        return self.shards * BYTES_A_SHARD_RECORD

    @property
    def hours(self) -> float | None:
        """Hours of a single device; None if the rate is unknown."""
        return self.rows / self.rate / 3600 if self.rate else None

    def devices_for(self, hours: float) -> int | None:
        """Return the number of devices that finish within ``hours``; None if the rate is unknown."""
        return max(1, math.ceil(self.hours / hours)) if self.hours is not None else None

    def machines_for(self, hours: float) -> int | None:
        """Return the number of machines that finish within ``hours``; None if the rate is unknown."""
        devices = self.devices_for(hours)
        return -(-devices // self.per_machine) if devices is not None else None

    def as_dict(self) -> dict[str, Any]:
        sizes = {"shards": self.shards, "bytes": self.bytes, "record_bytes": self.record_bytes}
        devices = {str(hours): self.devices_for(hours) for hours, _ in SPANS}
        machines = {str(hours): self.machines_for(hours) for hours, _ in SPANS}
        hours = {"device_hours": self.hours, "devices_for_hours": devices, "machines_for_hours": machines}
        return asdict(self) | sizes | hours

    def text(self) -> str:
        lines = [
            f"table '{self.table}' of {self.rows:,} images",
            f"shards        {self.shards:,} of {self.shard_rows:,} rows ({self.shard_rows * self.width / 1e6:.1f} MB each)",
            f"features      {self.bytes / 1e9:,.2f} GB ({self.width} bytes a row, keys included)",
            f"records       {self.record_bytes / 1e6:,.1f} MB (manifest and ledger)",
        ]
        if self.hours is None:
            return "\n".join([*lines, "device hours  unknown: measure the rate with --probe, or give one with --rate"])
        each = ", ".join(f"{n:,} device{'s' if n > 1 else ''} {_span(self.hours / n)}" for n in DEVICES)
        lines.append(f"device hours  {self.hours:,.1f} at {self.rate:,.1f} images/s a device ({each})")
        for what, needed in ((f"{'devices':14}", self.devices_for), (f"{'machines':14}", self.machines_for)):
            lines.append(what + ", ".join(f"{needed(hours):,} for {name}" for hours, name in SPANS))
        lines[-1] += f", of {self.per_machine} device{'s' if self.per_machine > 1 else ''} each"
        return "\n".join(lines)


def cost_of(plan: Plan, images: int, shard_rows: int, rate: float | None = None, per_machine: int = 1) -> Cost:
    """Return the cost of ``images`` images with the plan's extractor; ``rate`` defaults to that of the plan's probe."""
    table = next(name for name in ("image", "target") if name in plan.tables)
    if rate is None and plan.probe is not None:
        rate = plan.probe.rates.get(table)
    return Cost(table, images, plan.widths[table] + KEY_BYTES, shard_rows, rate, per_machine)


def _span(hours: float) -> str:
    if hours < 1:
        return f"{hours * 60:,.0f} min"
    return f"{hours:,.1f} h" if hours < 72 else f"{hours / 24:,.1f} days"


@dataclass(frozen=True)
class MemoryBound:
    """Bytes of one job: ``decoding`` if each of ``processes`` has an image of the largest accepted size and file at once;
    ``model``: its weights; ``waiting``: prepared images; ``catalog``; ``program``. A batch's activations are not included.
    """

    processes: int
    decoding: int
    model: int
    waiting: int
    catalog: int
    program: int

    @property
    def bytes(self) -> int:
        return self.decoding + self.model + self.waiting + self.catalog + self.program

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"bytes": self.bytes}

    def text(self) -> str:
        rest = {"model": self.model, "prepared images": self.waiting, "catalog": self.catalog, "program": self.program}
        parts = [f"decoding in {self.processes} process(es) {self.decoding / 1e9:,.1f}"]
        parts += [f"{name} {size / 1e9:,.1f}" for name, size in rest.items() if size >= 5e7]
        limits = f"an image has at most {MAX_PIXELS:,} pixels, a file {MAX_BYTES / 1e9:.1f} GB"
        total = f"at most {self.bytes / 1e9:,.1f} GB, and a batch's activations"
        return f"memory  {total}: {', '.join(parts)}; {limits}"


def memory_of(extractor: Extractor, images: int, catalog: int, workers: int, batch_size: int) -> MemoryBound:
    """Return the bound for ``images`` images to read, of ``catalog`` in all, with ``workers`` decoding processes."""
    processes = max(1, min(workers, images // IMAGES_A_WORKER)) if images else 0
    ahead = (BATCHES_AHEAD + 2) * batch_size + processes * JOBS_AHEAD * extractor.images_per_job
    decoding = processes * (MAX_PIXELS * BYTES_A_PIXEL + MAX_BYTES)
    found = extractor.prepare(Image.new("RGB", (_SIDE, _SIDE))) if images else []  # as most have it
    prepared = sum(getattr(p, "nbytes", 0) for p in (found.values() if isinstance(found, dict) else [found]))
    rest = (min(ahead, images) * prepared, catalog * BYTES_AN_IMAGE, PROGRAM + processes * PROCESS)
    return MemoryBound(processes, decoding, _weights(extractor), *rest)


def _weights(extractor: Extractor) -> int:
    """Return the bytes of the networks, and of the float32 ones with which a lower precision is compared."""
    if extractor.device.type != "cpu":
        return 0
    networks = [value for value in vars(extractor).values() if isinstance(value, torch.nn.Module)]
    parameters = {id(p): p for network in networks for p in (*network.parameters(), *network.buffers())}.values()
    reference = 4 if extractor.compute != torch.float32 else 0
    return sum(p.nbytes + reference * p.numel() for p in parameters)
