"""Result of an extraction: rows by table, seconds by stage, and the path of the store."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from cache import Failure
from manifests.errors import most_frequent
from manifests.schema import Dataset
from pipeline.core.image_files import is_transient
from pipeline.extraction.plan import Plan
from pipeline.extraction.work import pair_name

Keys: TypeAlias = dict[str, bytes]  # image id -> content key
_PRINTED = ("fingerprint", "bytes", "extracted", "reused", "failed", "unread", "cut", "workers", "checked", "notes")


@dataclass
class TableReport:
    """``requests`` before, ``unique`` after deduplication (= extracted + reused + failed); ``unusable``: no content."""

    requests: int
    unique: int
    reused: int
    extracted: int = 0
    failed: int = 0
    unusable: int = 0


@dataclass
class Report:
    """Result of ``extract``. ``seconds``: hash, decode and tokenise (summed over the worker threads), stack, model,
    write; ``work``: from the first batch to the last commit; ``wall``: total.

    ``left_out``: split -> (sessions that need a failed row, all sessions); later stages skip the former.
    """

    path: Path
    fingerprint: str
    tables: dict[str, TableReport]
    reasons: dict[str, str]
    seconds: dict[str, float] = field(default_factory=dict)
    bytes: int = 0
    cut: int = 0  # truncated texts
    why: dict[str, list[str]] = field(default_factory=dict)  # table -> "stage: reason" of each failure of this run
    unread: int = 0  # of these, I/O errors, which the next run tries again
    left_out: dict[str, tuple[int, int]] = field(default_factory=dict)
    workers: dict[str, int] = field(default_factory=dict)  # shards by cluster worker
    busy: dict[str, float] = field(default_factory=dict)  # seconds by stage, divided by its threads
    slowest: str = "none"  # stage with the most busy time
    catalogue: Keys = field(default_factory=dict, repr=False)  # as read
    checked: dict[str, Any] = field(default_factory=dict)  # measurements of precision and tower format
    notes: list[str] = field(default_factory=list)  # events of the job, such as a lost process
    remarks: dict[str, int] = field(default_factory=dict)  # remark on an image's decoding -> number of images

    @property
    def extracted(self) -> int:
        return sum(t.extracted for t in self.tables.values())

    @property
    def reused(self) -> int:
        return sum(t.reused for t in self.tables.values())

    @property
    def failed(self) -> int:
        return sum(t.failed + t.unusable for t in self.tables.values())

    def count_failure(self, table: str, stage: str, reason: str) -> None:
        self.why.setdefault(table, []).append(f"{stage}: {reason}")
        self.unread += is_transient(stage, reason)

    def as_dict(self) -> dict[str, Any]:
        done = self.extracted
        rates = {stage: done / seconds for stage, seconds in self.seconds.items() if done and seconds > 0}
        return {
            "store": str(self.path),
            **{name: getattr(self, name) for name in (*_PRINTED, "remarks")},
            "sessions_left_out": {split: {"sessions": n, "of": of} for split, (n, of) in self.left_out.items()},
            "tables": {name: asdict(table) | {"reason": self.reasons[name]} for name, table in self.tables.items()},
            "seconds": self.seconds,
            "rates": rates,  # rows per second: of the whole call, and of each stage as if it ran alone on one thread
        }

    def text(self) -> str:
        lines = [f"store  {self.path}  ({self.bytes / 1e6:.1f} MB)"]
        for name, t in self.tables.items():
            failed = f", {t.failed + t.unusable:,} failed" if t.failed + t.unusable else ""
            why = "" if t.extracted else f"  ({self.reasons[name]})"
            counts = f"{t.extracted:,} extracted, {t.reused:,} reused{failed}{why}"
            lines.append(f"{name:6} {t.requests:,} requested, {t.unique:,} unique: {counts}")
        if self.extracted:
            shown = {n: s for n, s in self.seconds.items() if n not in ("wall", "work")}
            stages = ", ".join(f"{n} {s:.1f}" for n, s in shown.items() if s >= 0.05 or n == self.slowest)
            wall = self.seconds.get("wall", 0.0)
            total = f"{wall:.1f} s, {self.extracted / max(wall, 1e-9):,.0f} rows/s"
            lines.append(f"time   {total}; thread-seconds: {stages}; slowest: {self.slowest}")
        else:
            lines.append("nothing was extracted: every row is there already, or is known to fail")
        lines += [f"note   {note}" for note in self.notes]
        lines += [f"note   {name} {self.checked[name]}" for name in ("precision", "form") if name in self.checked]
        lines += [f"note   {count:,} image(s) {remark}" for remark, count in self.remarks.items()]
        if found := self.checked.get("decode"):
            cosine = f"{found['least_cosine_to_pillow']:.7f} on {found['images']} images"
            more = f"cosine to Pillow's decode >= {cosine} (more: cache verify SPEC --reextract 100)"
            lines.append(f"note   decoded by torchvision ({found['decoder']}): {more}")
        if self.cut:
            lines.append(f"note   {self.cut:,} texts were longer than the model reads, and lost their end")
        if self.failed:
            reasons = [reason for found in self.why.values() for reason in found]
            why = f" (most frequent, {most_frequent(reasons)})" if reasons else ""
            count = "1 item has" if self.failed == 1 else f"{self.failed:,} items have"
            lines.append(f"note   {count} no row{why}; the reasons are in {self.path / 'ledger.jsonl'}")
        if self.unread:
            fix = "run the same command again, which reads them again"
            lines.append(f"note   {self.unread:,} of them could not be read from the disk: {fix}")
        if short := [f"{n:,} of {of:,} {split} sessions" for split, (n, of) in self.left_out.items() if n]:
            what = f"{' and '.join(short)} need one of these rows"
            lines.append(f"note   {what}: they are left out, nothing is filled in")
        return "\n".join(lines)


def report_of(path: Path, plan: Plan) -> Report:
    """Return the report of a planned job before any work."""
    report = Report(path, plan.fingerprint, {}, {name: t.reason for name, t in plan.tables.items()})
    for name, t in plan.tables.items():
        report.tables[name] = TableReport(t.requests, t.unique, t.done, failed=t.failed, unusable=len(t.unusable))
        for failure in t.unusable:
            report.count_failure(name, failure.stage, failure.reason)
    return report


def left_out(dataset: Dataset, failures: Sequence[Failure]) -> dict[str, tuple[int, int]]:
    """Return split -> (sessions that need a failed row, all sessions)."""
    images = {f.item for f in failures if f.table in ("image", "target")}
    asked = {f.item for f in failures if f.table in ("text", "query")}  # texts, or names of pairs
    found: dict[str, tuple[int, int]] = {}
    for session in dataset.sessions:
        queries = list(session.queries())
        needs = {session.target, *(image for image, _, _ in queries)}
        bad = bool(needs & images) or any(t in asked or pair_name(image, t) in asked for image, t, _ in queries)
        n, of = found.get(session.split, (0, 0))
        found[session.split] = n + bad, of + 1
    return found
