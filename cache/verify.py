"""Verify a store: read every byte and list all problems."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

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
from cache.stat_cache import sha256_of
from manifests.identity import stack_keys

Level = Literal["error", "warning", "note"]
UNIT_TOLERANCE = {"float16": 2e-3, "float32": 1e-4}  # of a norm; rounding of the values changes it by less
_BLOCK = 1024  # rows per block; fits in the processor's cache
_SHOWN = 5
_REDO = "run `cache repair` on the store, which computes only these rows again"


@dataclass(frozen=True)
class Finding:
    """Problem of a store. "error": rows or bindings are not trustworthy; "warning": something is missing or
    foreign; "note": harmless. ``code``: manifest, missing, size, digest, header, nonfinite, norm, zero, duplicate,
    contiguity, catalogue, dangling, ledger, orphan, rejected, temporary, place. ``rows``, ``keys``: the rows of the
    shard (or table) at fault and their content keys, at most the first five."""

    level: Level
    code: str
    place: str  # file, within the store
    what: str
    fix: str = ""
    rows: tuple[int, ...] = ()
    keys: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.level}: {self.place}: {self.what}" + (f" ({self.fix})" if self.fix else "")

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def verify(
    path: str | Path, progress: Callable[[str], None] = lambda file: None, workers: int | None = None
) -> list[Finding]:
    """Check digests, headers, counts, NaN and Inf, norms, repeated keys, layout, catalog, ledger and stray files.

    Return the findings; empty if there are none. ``progress`` is called with each file. ``workers``: threads that hash
    and check shards in parallel (default: one per processor, at most 8). Changes nothing.
    Raise StoreNotFoundError if there is no such directory, StoreVersionError for a newer format.
    """
    path = Path(path)
    if not path.is_dir():
        raise StoreNotFoundError(f"there is no store: {path} does not exist")
    with naming(path, "read"):
        return list(_verify(path, progress, workers or min(8, os.cpu_count() or 1)))


def declares_unit_norm(fields: Mapping[str, Any]) -> bool:
    """Return whether the fields imply rows of unit norm: field ``normalise`` or, without it, a composer."""
    return bool(fields.get("normalise", "composer" in fields))


def _verify(path: Path, progress: Callable[[str], None], workers: int) -> Iterator[Finding]:
    manifest = None
    try:
        manifest = load_manifest(path)
    except StoreVersionError:
        raise
    except (StoreCorruptError, StoreNotFoundError) as error:
        yield Finding("error", "manifest", MANIFEST, str(error), "or run `cache repair SPEC`, which rebuilds it")
    yield from _strays(path, manifest)
    yield from _ledger(path)
    if manifest is None:
        return
    if not path.resolve().name.endswith(f"-{manifest.fingerprint[:12]}"):
        what = f"the folder is not named after its fingerprint {manifest.fingerprint[:12]}"
        fix = "a renamed or copied store is found again only under its own name"
        yield Finding("note", "place", path.name, what, fix)
    known: dict[str, KeyIndex] = {}
    whole = True
    with ThreadPoolExecutor(workers, "verify") as pool:
        work = {
            shard.file: pool.submit(_shard, path, manifest, table, info, shard)
            for table, info in manifest.tables.items()
            for shard in info.shards
        }
        for table, info in manifest.tables.items():
            parts = []
            for shard in info.shards:
                progress(shard.file)
                found, keys = work.pop(shard.file).result()
                yield from found
                whole = whole and keys is not None
                parts += [] if keys is None else [keys]
            known[table] = KeyIndex(np.concatenate(parts)) if parts else KeyIndex()
            again = duplicates(np.concatenate(parts)) if parts else np.empty(0, dtype=np.int64)
            if len(again):
                which = tuple(np.concatenate(parts)[n].tobytes().hex() for n in again[:_SHOWN])
                what = f"{len(again)} keys appear twice in the table, first {which[0]}"
                yield Finding("error", "duplicate", table, what, _REDO, tuple(again[:_SHOWN].tolist()), which)
    yield from _catalogue(path, manifest, known, whole)


def _shard(
    path: Path, manifest: Manifest, table: str, info: TableInfo, shard: ShardInfo
) -> tuple[list[Finding], np.ndarray | None]:
    """Return the findings of a shard, and its keys uint8 [rows, 16] if the file is the committed one."""
    file = path / shard.file

    def lost(code: str, what: str) -> Finding:
        return Finding("error", code, shard.file, what, f"restore it from a copy, or {_REDO}")

    if not file.is_file():
        return [lost("missing", f"is missing, with {shard.rows} rows of table '{table}'")], None
    size = file.stat().st_size
    if size != shard.bytes:
        return [lost("size", f"has {size} bytes, not {shard.bytes}")], None
    digest = sha256_of(file)
    if digest != shard.sha256:
        return [lost("digest", f"{manifest.origin_of(digest)}; {shard.rows} rows of table '{table}' are lost")], None
    problems = header_problems(file, manifest, table, shard_number(shard.file)[1], shard, info)
    if problems:
        return [lost("header", problem) for problem in problems], None
    found = []
    if None in (shard.features_at, shard.keys_at):
        what, fix = "its rows do not lie in one piece", "it reads slowly, and right"
        found.append(Finding("note", "contiguity", shard.file, what, fix))
    keys = read_keys(file, shard)
    for level, code, what, rows in bad_rows(file, shard, info, declares_unit_norm(manifest.fields)):
        some = tuple(int(n) for n in rows[:_SHOWN])
        named = tuple(keys[n].tobytes().hex() for n in some)
        what = f"{what} {len(rows)} rows, first row {some[0]} (key {named[0]})"
        found.append(
            Finding(level, code, shard.file, what, _REDO if level == "error" else "look at its item", some, named)
        )
    return found, keys


def bad_rows(
    file: Path, shard: ShardInfo, info: TableInfo, normalized: bool
) -> list[tuple[Level, str, str, np.ndarray]]:
    """Return (level, code, words, row numbers within the shard) of rows that no extraction should produce."""
    features = map_features(file, shard, info)
    tolerance = UNIT_TOLERANCE[info.dtype]
    nonfinite, zero, uneven = [], [], []
    for start in range(0, shard.rows, _BLOCK):
        block = features.take(np.arange(start, min(start + _BLOCK, shard.rows)), axis=0)
        broken = nonfinite_rows(block)
        single = block.astype(np.float32, copy=False)
        norms = np.sqrt(np.einsum("nd,nd->n", single, single))
        norms[broken] = 1.0
        empty = norms == 0.0
        empty[empty] = ~block[empty].any(axis=1)  # squares of very small values underflow in nonzero rows
        nonfinite.append(start + broken)
        zero.append(start + np.flatnonzero(empty))
        uneven.append(start + np.flatnonzero(~empty & (np.abs(norms - 1.0) > tolerance)))
    found: list[tuple[Level, str, str, np.ndarray]] = [
        ("error", "nonfinite", "NaN or Inf in", np.concatenate(nonfinite)),
        ("error" if normalized else "warning", "zero", "only zeros in", np.concatenate(zero)),
    ]
    if normalized:
        what = f"not of unit norm (within {tolerance:g}), as the fingerprint says:"
        found.append(("error", "norm", what, np.concatenate(uneven)))
    return [case for case in found if len(case[3])]


def _strays(path: Path, manifest: Manifest | None) -> Iterator[Finding]:
    listed = {s.file for s in manifest.shards} if manifest else set()
    if manifest and manifest.catalogue:
        listed.add(CATALOGUE)
    for name in sorted(os.listdir(path)):
        if name in {*listed, MANIFEST, LEDGER, LOCK, VERIFIED} or name.startswith(LEASE) or (path / name).is_dir():
            continue
        if is_temporary(name):
            yield Finding("note", "temporary", name, "left by a writer that died", "the next writer removes it")
        elif name.endswith(REJECTED):
            what = "a shard that did not verify was set aside; nothing reads it"
            yield Finding("warning", "rejected", name, what, "delete it, or run `cache gc`")
        elif manifest:
            fix = "the next writer takes it back if its receipt matches, or sets it aside"
            yield Finding("warning", "orphan", name, "is not named by the manifest: nothing reads it", fix)


def _ledger(path: Path) -> Iterator[Finding]:
    damaged = [number for number, record in Ledger(path).lines() if record is None]
    if damaged:
        lines = ", ".join(map(str, damaged[:5])) + (" ..." if len(damaged) > 5 else "")
        what = f"{len(damaged)} damaged lines ({lines}), which are not read"
        fix = "receipts and failures in them are lost, no row is; `cache repair` takes the lines out"
        yield Finding("warning", "ledger", LEDGER, what, fix)
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
        fix = "run the extraction again, or `cache repair`"
        yield Finding("error", "catalogue", CATALOGUE, "is missing or was changed", fix)
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
