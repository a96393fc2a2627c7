"""What an extraction did: rows by table, seconds by stage, and where the rows are."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class TableReport:
    """``requests`` before, ``unique`` after deduplication = extracted + reused + failed; ``unusable`` had no content."""

    requests: int
    unique: int
    reused: int
    extracted: int = 0
    failed: int = 0
    unusable: int = 0


@dataclass
class Report:
    """``seconds``: hash, decode and tokenise (added up over the worker threads), model, write, and wall in all."""

    path: Path
    fingerprint: str
    tables: dict[str, TableReport]
    reasons: dict[str, str]
    seconds: dict[str, float] = field(default_factory=dict)
    bytes: int = 0
    cut: int = 0  # texts longer than the model reads
    new_failures: int = 0

    @property
    def extracted(self) -> int:
        return sum(t.extracted for t in self.tables.values())

    @property
    def reused(self) -> int:
        return sum(t.reused for t in self.tables.values())

    @property
    def failed(self) -> int:
        return sum(t.failed + t.unusable for t in self.tables.values())

    @property
    def rates(self) -> dict[str, float]:
        """Rows a second: of the whole call, and of each stage had it been alone on one thread."""
        done = self.extracted
        return {stage: done / seconds for stage, seconds in self.seconds.items() if done and seconds > 0}

    def as_dict(self) -> dict[str, Any]:
        return {
            "store": str(self.path),
            "fingerprint": self.fingerprint,
            "bytes": self.bytes,
            "extracted": self.extracted,
            "reused": self.reused,
            "failed": self.failed,
            "cut": self.cut,
            "tables": {name: asdict(table) | {"reason": self.reasons[name]} for name, table in self.tables.items()},
            "seconds": self.seconds,
            "rates": self.rates,
        }

    def text(self) -> str:
        lines = [f"store  {self.path}  ({self.bytes / 1e6:.1f} MB)"]
        for name, t in self.tables.items():
            failed = f", {t.failed + t.unusable:,} failed" if t.failed + t.unusable else ""
            why = "" if t.extracted else f"  ({self.reasons[name]})"
            lines.append(
                f"{name:6} {t.requests:,} requested, {t.unique:,} unique: "
                f"{t.extracted:,} extracted, {t.reused:,} reused{failed}{why}"
            )
        if self.extracted:
            stages = ", ".join(f"{n} {s:.1f} s" for n, s in self.seconds.items() if s >= 0.05 and n != "wall")
            wall = self.seconds.get("wall", 0.0)
            lines.append(f"time   {wall:.1f} s, {self.extracted / max(wall, 1e-9):,.0f} rows/s ({stages})")
        else:
            lines.append("nothing was extracted: every row is there already, or is known to fail")
        if self.cut:
            lines.append(f"note   {self.cut:,} texts were longer than the model reads, and lost their end")
        if self.failed:
            lines.append(f"note   {self.failed:,} items have no row; the reasons are in {self.path / 'ledger.jsonl'}")
        return "\n".join(lines)
