"""Names and paths: the tables, the files of a store, and the directory of a (dataset, extractor) pair.

<stores>/<dataset>/<extractor>-<fingerprint12>/
    manifest.json               committed state, with a digest of itself; replaced atomically
    ledger.jsonl                receipts of shards, failures of items; appended
    catalogue.h5                image id -> 16-byte image key
    <table>-00000.h5 ...        immutable shards: "features" [n, D], "keys" [n, 16] uint8
    .writer.lock                locked (flock) by the single writer
    .writer.lease-000001        lease of the current writer and its heartbeat (see cache.lease)
    .verified.json              verified shards and their file stamps; may be deleted
    .<name>.<pid>-<random>.tmp  not committed: ignored by readers, removed by the next writer
    <name>.rejected             set aside by a writer: had the name of a shard and failed verification
"""

from __future__ import annotations

import json
import os
import re
import secrets
from pathlib import Path
from typing import Any

from cache.errors import StoreError
from manifests.errors import nearest
from manifests.identity import digest

TABLES = ("image", "text", "query", "target")
DTYPES = ("float16", "float32")
MANIFEST, LEDGER, CATALOGUE = "manifest.json", "ledger.jsonl", "catalogue.h5"
LOCK, LEASE, VERIFIED = ".writer.lock", ".writer.lease-", ".verified.json"
REJECTED = ".rejected"
SHARD_NAME = re.compile(rf"({'|'.join(TABLES)})-(\d{{5,9}})\.h5")
_COMPONENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,99}")
_STORE = re.compile(r".+-[0-9a-f]{12}")
_TEMPORARY = re.compile(r"\..+\.\d+-[0-9a-f]+\.tmp")


def canonical(fields: Any, what: str = "fields") -> Any:
    """Return ``fields`` after a JSON round trip (tuples become lists), so that memory and manifest agree.

    Raise StoreError for values without a JSON form, which the store could not show or compare later.
    """
    try:
        plain = json.loads(json.dumps(fields, allow_nan=False))
        digest(plain)
    except (TypeError, ValueError, RecursionError) as error:
        raise StoreError(
            f"{what} must be plain JSON values (text, numbers, true, false, lists, tables): {error}"
        ) from None
    return plain


def store_path(stores: Path, dataset: str, extractor: str, fields: dict[str, Any]) -> Path:
    """Return the directory of the store of ``dataset`` and ``extractor`` with semantic fields ``fields``."""
    check_component(dataset, "dataset")
    check_component(extractor, "extractor")
    return Path(stores) / dataset / f"{extractor}-{digest(canonical(fields))[:12]}"


def wrong_place(path: Path, dataset: str, extractor: str, fingerprint: str) -> str:
    """Return ``folder: own -> found`` if the folder at ``path`` is named after another store, else "".

    A folder not named ``<extractor>-<fingerprint12>`` may contain any store, one not below ``stores`` any dataset's.
    """
    place = Path(os.path.abspath(path))
    own = f"{extractor}-{fingerprint[:12]}"
    if not _STORE.fullmatch(place.name):
        return ""
    if place.parent.parent.name == "stores" and place.parent.name != dataset:
        return f"folder: {dataset}/{own} -> {place.parent.name}/{place.name}"
    return f"folder: {own} -> {place.name}" if place.name != own else ""


def check_component(name: str, what: str) -> None:
    """Refuse an invalid folder name: with a separator, ``..``, empty, or too long."""
    if not isinstance(name, str) or not _COMPONENT.fullmatch(name):
        raise StoreError(
            f"{what} {name!r} becomes a folder name: use up to 100 letters, digits, '.', '_', '+' and '-', "
            "beginning with a letter or digit"
        )


def check_table(table: str) -> None:
    if table not in TABLES:
        raise StoreError(f"unknown table {table!r}: {nearest(str(table), TABLES)}")


def shard_name(table: str, number: int) -> str:
    return f"{table}-{number:05d}.h5"


def shard_number(name: str) -> tuple[str, int]:
    """Return (table, number) of a shard's file name. Raise ValueError for other names, so no path leaves the store."""
    match = SHARD_NAME.fullmatch(name)
    if not match or shard_name(match[1], int(match[2])) != name:
        raise ValueError(f"{name!r} is not the name of a shard")
    return match[1], int(match[2])


def temporary_for(path: Path) -> Path:
    """Return a new temporary name next to ``path``."""
    return path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")


def is_temporary(name: str) -> bool:
    return bool(_TEMPORARY.fullmatch(name))
