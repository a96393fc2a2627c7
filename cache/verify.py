"""Reads every byte of a store and lists everything that is wrong with it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from cache.catalogue import read_catalogue
from cache.errors import StoreCorruptError, StoreError, StoreNotFoundError, StoreVersionError, naming
from cache.index import KeyIndex, duplicates
from cache.layout import CATALOGUE, LEASE, LEDGER, LOCK, MANIFEST, REJECTED, VERIFIED, is_temporary, shard_number
from cache.ledger import Ledger
from cache.manifest import Manifest, ShardInfo, TableInfo, load_manifest
from cache.reader import Store
from cache.rows import map_features, read_keys
from cache.shards import header_problems, nonfinite_rows
from cache.stamps import sha256_of
from manifests.identity import stack_keys

Level = Literal["error", "warning", "note"]
_BLOCK = 4096


@dataclass(frozen=True)
class Finding:
    """One thing wrong. "error": rows or bindings cannot be trusted; "warning": something is missing or does not
    belong; "note": harmless. ``code``: manifest, missing, size, digest, header, nonfinite, duplicate, contiguity,
    catalogue, dangling, ledger, orphan, rejected, temporary, place."""

    level: Level
    code: str
    place: str  # file, within the store
    what: str
    fix: str = ""

    def __str__(self) -> str:
        return f"{self.level}: {self.place}: {self.what}" + (f" ({self.fix})" if self.fix else "")


def verify(path: str | Path, progress: Callable[[str], None] = lambda file: None) -> list[Finding]:
    """Check digests, headers, counts, NaN and Inf, repeated keys, layout, catalogue, ledger and stray files.

    Empty when all is well. ``progress`` is told each file before it is read. Changes nothing.
    Raises StoreNotFoundError when there is no such directory, StoreVersionError for a newer format.
    """
    path = Path(path)
    if not path.is_dir():
        raise StoreNotFoundError(f"there is no store: {path} does not exist")
    with naming(path, "read"):
        return list(_verify(path, progress))


def _verify(path: Path, progress: Callable[[str], None]) -> Iterator[Finding]:
    manifest = None
    try:
        manifest = load_manifest(path)
    except StoreVersionError:
        raise
    except (StoreCorruptError, StoreNotFoundError) as error:
        yield Finding("error", "manifest", MANIFEST, str(error))
    yield from _strays(path, manifest)
    yield from _ledger(path)
    if manifest is None:
        return
    if not path.resolve().name.endswith(f"-{manifest.fingerprint[:12]}"):
        yield Finding(
            "note", "place", path.name, f"the folder is not named after its fingerprint {manifest.fingerprint[:12]}",
            "a renamed or copied store is found again only under its own name",
        )  # fmt: skip
    known: dict[str, KeyIndex] = {}
    whole = True
    for table, info in manifest.tables.items():
        keys = []
        for shard in info.shards:
            progress(shard.file)
            found = list(_shard(path, manifest, table, info, shard))
            yield from found
            if any(f.level == "error" and f.code != "nonfinite" for f in found):
                whole = False
            else:
                keys.append(read_keys(path / shard.file, shard))
        known[table] = KeyIndex(np.concatenate(keys)) if keys else KeyIndex()
        again = duplicates(np.concatenate(keys)) if keys else []
        if len(again):
            yield Finding("error", "duplicate", table, f"{len(again)} keys appear twice in the table")
    yield from _catalogue(path, manifest, known, whole)


def _shard(path: Path, manifest: Manifest, table: str, info: TableInfo, shard: ShardInfo) -> Iterator[Finding]:
    file, fix = path / shard.file, "restore it from a copy, or extract its rows again"
    if not file.is_file():
        yield Finding("error", "missing", shard.file, f"is missing, with {shard.rows} rows of table '{table}'", fix)
        return
    size = file.stat().st_size
    if size != shard.bytes:
        yield Finding("error", "size", shard.file, f"has {size} bytes, not {shard.bytes}", fix)
        return
    digest = sha256_of(file)
    if digest != shard.sha256:
        yield Finding("error", "digest", shard.file, manifest.whose(digest), fix)
        return
    problems = header_problems(file, manifest, table, shard_number(shard.file)[1], shard, info)
    for problem in problems:
        yield Finding("error", "header", shard.file, problem, fix)
    if problems:
        return
    if None in (shard.features_at, shard.keys_at):
        yield Finding(
            "note", "contiguity", shard.file, "its rows do not lie in one piece", "it reads slowly, and right"
        )
    rows = map_features(file, shard, info)
    bad = [start + nonfinite_rows(rows.take(np.arange(start, min(start + _BLOCK, shard.rows)), axis=0))
           for start in range(0, shard.rows, _BLOCK)]  # fmt: skip
    count = sum(map(len, bad))
    if count:
        first = int(np.concatenate(bad)[0])
        yield Finding("error", "nonfinite", shard.file, f"NaN or Inf in {count} rows, first row {first}", fix)


def _strays(path: Path, manifest: Manifest | None) -> Iterator[Finding]:
    listed = {s.file for info in manifest.tables.values() for s in info.shards} if manifest else set()
    if manifest and manifest.catalogue:
        listed.add(CATALOGUE)
    for name in sorted(os.listdir(path)):
        if name in {*listed, MANIFEST, LEDGER, LOCK, VERIFIED} or name.startswith(LEASE) or (path / name).is_dir():
            continue
        if is_temporary(name):
            yield Finding("note", "temporary", name, "left by a writer that died", "the next writer removes it")
        elif name.endswith(REJECTED):
            yield Finding("warning", "rejected", name, "a shard that did not verify was set aside", "delete it")
        elif manifest:
            fix = "the next writer takes it back if its receipt matches, or sets it aside"
            yield Finding("warning", "orphan", name, "is not named by the manifest: nothing reads it", fix)


def _ledger(path: Path) -> Iterator[Finding]:
    damaged = [number for number, record in Ledger(path).lines() if record is None]
    if damaged:
        lines = ", ".join(map(str, damaged[:5])) + (" ..." if len(damaged) > 5 else "")
        what = f"{len(damaged)} damaged lines ({lines}), which are not read"
        yield Finding("warning", "ledger", LEDGER, what, "receipts and failures in them are lost; no row is")
    data = (path / LEDGER).read_bytes() if (path / LEDGER).exists() else b""
    if data and not data.endswith(b"\n"):
        yield Finding("note", "ledger", LEDGER, "the last line is torn", "the next writer cuts it off")


def _catalogue(path: Path, manifest: Manifest, known: dict[str, KeyIndex], whole: bool) -> Iterator[Finding]:
    info = manifest.catalogue
    if info is None:
        return
    try:
        catalogue = read_catalogue(path, info)
    except StoreError as error:
        yield Finding("error", "catalogue", CATALOGUE, str(error))
        return
    if catalogue is None:
        yield Finding("error", "catalogue", CATALOGUE, "is missing or was changed", "run the extraction again")
        return
    if info.replaces:
        yield Finding("note", "catalogue", CATALOGUE, "a replacement was interrupted", "the next writer settles it")
    tables = [t for t in ("image", "target") if t in known]
    if not whole or not catalogue or not tables:
        return
    keys = stack_keys(catalogue.values())
    present = np.zeros(len(keys), dtype=bool)
    for table in tables:
        present |= known[table].find(keys) >= 0
    failed = {f.item for f in Store(path, manifest).failures()}
    nowhere = [image for image, has in zip(catalogue, present, strict=True) if not has and image not in failed]
    if nowhere:
        some = ", ".join(repr(image[:60]) for image in nowhere[:3]) + (" ..." if len(nowhere) > 3 else "")
        what = f"{len(nowhere)} of {len(catalogue)} images point to no row: {some}"
        yield Finding("warning", "dangling", CATALOGUE, what, "run the extraction again: it does what is missing")
