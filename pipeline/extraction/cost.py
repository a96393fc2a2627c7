"""Cost of a large catalog: shards, bytes and device hours, computed from a measured rate."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from manifests.identity import KEY_BYTES
from pipeline.extraction.plan import Plan

BYTES_A_SHARD_RECORD = 460  # manifest.json and ledger.jsonl together; measured, and checked by a test
DEVICES = (1, 8, 64)
SPANS = ((1, "an hour"), (24, "a day"), (168, "a week"))  # hours, name


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
        return {
            **asdict(self),
            "shards": self.shards,
            "bytes": self.bytes,
            "record_bytes": self.record_bytes,
            "device_hours": self.hours,
            "devices_for_hours": {str(hours): self.devices_for(hours) for hours, _ in SPANS},
            "machines_for_hours": {str(hours): self.machines_for(hours) for hours, _ in SPANS},
        }

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
