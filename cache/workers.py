"""Shards written by processes without the writer's lease: workers write files, one coordinator commits them.

On any machine with access to the store's folder, ``write_shard`` creates a checked, durable file under a temporary
name, which readers ignore, and returns a receipt: a small record for the coordinator. There ``StoreWriter.adopt``
checks the file against the receipt and commits it like any other shard. A dead worker leaves a temporary file, which
the next writer removes; the rows of a lost receipt are computed again, never wrong.

    with StoreWriter(path, ...) as writer:                  # the coordinator first creates the store
        first = writer.next_number("image")
        ...                                                 # a worker, as task n of the table:
            receipt = write_shard(path, "image", keys, features, number=first + n)
        ...                                                 # the coordinator, in order of n:
        writer.adopt(receipt)

Rows are in the order of ``adopt``. If shards are adopted in task order, the store is identical, byte for byte, for any
number of workers, and identical to that of ``StoreWriter.commit`` for the same rows.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cache.errors import StoreCorruptError, StoreError, naming
from cache.files import now
from cache.layout import check_table, is_temporary, shard_name, shard_number, temporary_for
from cache.ledger import Receipt
from cache.manifest import Manifest, load_manifest
from cache.shards import FoundShard, check_rows, examine
from cache.shards import write_shard as _write
from cache.stat_cache import sha256_of


def write_shard(
    path: str | Path, table: str, keys: np.ndarray, features: np.ndarray, *, number: int = 0, seconds: float = 0.0
) -> Receipt:
    """Write rows as one uncommitted shard into the store at ``path``. Needs no lease; safe in any process.

    keys uint8 [n, 16], features float16 or float32 [n, D], n > 0. ``number``: expected number of the
    shard when it is adopted (``adopt`` rewrites a shard whose number differs). ``seconds``: the model's time.

    The receipt describes a durable file: it may be sent, stored and adopted later by the same coordinator.
    Raise StoreNotFoundError before the coordinator has created the store, StoreError for invalid rows (see
    ``StoreWriter.commit``) and for a full disk; then no file is left.
    """
    path = Path(path)
    check_table(table)
    manifest = load_manifest(path)
    keys, features = check_rows(table, manifest.tables.get(table), keys, features)
    try:
        shard_number(shard_name(table, number))
    except (ValueError, TypeError):
        raise StoreError(f"a shard's number must be from 0 to 999999999, not {number!r}") from None
    temporary = temporary_for(path / shard_name(table, number))
    with naming(path, "write"):
        try:
            shard = _write(temporary, manifest, table, number, keys, features)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    return Receipt(table, shard.file, shard.rows, float(seconds), now(), shard.bytes, shard.sha256, temporary.name)


def check_written(directory: Path, manifest: Manifest, receipt: Receipt) -> FoundShard:
    """Read and check every byte of the receipt's file. Raise StoreError; StoreCorruptError if the file differs."""
    try:
        table = shard_number(receipt.shard)[0]
    except (ValueError, TypeError):
        table = ""
    name = receipt.file
    ours = isinstance(name, str) and Path(name).name == name and is_temporary(name)
    if not ours or table != receipt.table or not name.startswith(f".{receipt.shard}."):
        raise StoreError(f"{name!r} of {receipt.shard!r} is no worker's file: adopt what cache.write_shard returned")
    file, again = directory / name, "none of its rows are in the store: write the shard again"
    try:
        if (file.stat().st_size, sha256_of(file)) != (receipt.bytes, receipt.sha256):
            raise StoreCorruptError(f"{file} is not the file of its receipt (other bytes): {again}")
        return examine(file, receipt.shard, manifest, receipt.sha256)
    except FileNotFoundError:
        raise StoreCorruptError(f"{file} is missing: {again}") from None
    except ValueError as error:
        raise StoreCorruptError(f"{file} does not belong here ({error}): {again}") from None
