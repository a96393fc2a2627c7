"""ledger.jsonl: log of shard receipts, item failures and withdrawn failures, one line with a checksum each.

The manifest, not the ledger, decides which rows exist. With the ledger, a writer recovers a shard that was renamed
into place but not yet entered in the manifest: the receipt, written before the rename, has its digest.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from cache.files import sync_file, write_all
from cache.layout import LEDGER


@dataclass(frozen=True)
class Receipt:
    """Receipt of a shard. ``seconds``: the model's time for its rows, as given by its writer; ``when``: UTC.

    ``file``: the temporary name of a worker's shard that is not committed (see ``cache.workers``), else empty.
    """

    table: str
    shard: str
    rows: int
    seconds: float
    when: str
    bytes: int = 0
    sha256: str = ""
    file: str = ""


@dataclass(frozen=True)
class Failure:
    """Item (image id, text, or both) without a row, the stage that failed, and the reason.

    ``key``: 32 hex digits of the row's content key, if known; a row with this key withdraws the failure.
    """

    table: str
    item: str
    stage: str
    reason: str
    when: str = ""
    key: str | None = None


_NEEDED = {
    "receipt": {"table", "shard", "rows", "seconds", "when"},
    "failure": {"table", "item", "stage", "reason"},
    "cleared": {"table", "item"},
}


class Ledger:
    """Reader and writer of the ledger. A line is valid if its checksum (``crc``, of the line without it) matches."""

    def __init__(self, directory: Path):
        self.path = directory / LEDGER

    def append(self, kind: str, *records: Mapping[str, Any], durable: bool = True) -> None:
        """Append a line per record. Unless ``durable``, the caller calls ``sync``. Raise OSError with nothing added."""
        lines = []
        for record in records:
            line = {"kind": kind, **record}
            lines.append(json.dumps({**line, "crc": _checksum(line)}).encode() + b"\n")
        with open(self.path, "ab", buffering=0) as handle:
            start = handle.tell()
            try:
                write_all(handle.fileno(), memoryview(b"".join(lines)), start)
                if durable:
                    os.fsync(handle.fileno())
            except OSError:
                os.ftruncate(handle.fileno(), start)  # a full disk must not leave a partial line
                raise

    def sync(self) -> None:
        sync_file(self.path)

    def mend(self) -> None:
        """Remove an unfinished last line of a dead writer, so that the next line starts a new one."""
        if not self.path.exists():
            return
        data = self.path.read_bytes()
        end = data.rfind(b"\n") + 1
        if end < len(data):
            os.truncate(self.path, end)
            self.sync()

    def lines(self) -> Iterator[tuple[int, dict[str, Any] | None]]:
        """Yield (line number, record); the record of a damaged line is None. An unfinished last line is skipped."""
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            return
        *whole, _torn = data.split(b"\n")
        for number, line in enumerate(whole, start=1):
            yield number, _parse(line)

    def receipts(self) -> list[Receipt]:
        """Return all receipts, including those of replaced shards: compare ``sha256`` with the manifest's."""
        return [Receipt(**_known(Receipt, r)) for _, r in self.lines() if r and r["kind"] == "receipt"]

    def failures(self) -> dict[tuple[str, str], Failure]:
        """Return the last failure of each (table, item) that was not withdrawn by name."""
        found: dict[tuple[str, str], Failure] = {}
        for _, record in self.lines():
            if record and record["kind"] == "failure":
                failure = Failure(**_known(Failure, record))
                found[failure.table, failure.item] = failure
            elif record and record["kind"] == "cleared":
                found.pop((record["table"], record["item"]), None)
        return found

    def add_receipt(self, receipt: Receipt) -> None:
        """Append a receipt without syncing: it survives its process, and the commit syncs it with the manifest."""
        self.append("receipt", {k: v for k, v in asdict(receipt).items() if k != "file"}, durable=False)

    def add_failure(self, *failures: Failure) -> None:
        self.append("failure", *map(asdict, failures))

    def clear(self, table: str, item: str, when: str) -> None:
        self.append("cleared", {"table": table, "item": item, "when": when})


def _checksum(record: Mapping[str, Any]) -> str:
    return f"{zlib.crc32(json.dumps(record, sort_keys=True).encode()):08x}"


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
        if record.pop("crc") == _checksum(record) and record.keys() >= _NEEDED.get(record["kind"], set()):
            return record
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        pass
    return None


def _known(kind: type, record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of the record that this version knows; later versions may write more."""
    return {name: record[name] for name in (f.name for f in fields(kind)) if name in record}
