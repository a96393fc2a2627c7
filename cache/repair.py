"""Repair a store: remove damaged rows, restore renamed shards, and leave valid rows unchanged.

Removed rows are missing afterwards, and the next extraction computes them again. Damaged files are set aside under
another name, never deleted.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cache.errors import StoreCorruptError, StoreError, StoreMismatchError, StoreNotFoundError
from cache.files import sync_directory
from cache.hdf5 import read_header
from cache.index import duplicates
from cache.layout import MANIFEST, REJECTED, shard_number
from cache.manifest import Manifest, load_manifest
from cache.reader import Store
from cache.recovery import set_aside, unlisted_shards
from cache.rewrite import Rewriter
from cache.stat_cache import sha256_of
from cache.verify import Finding, bad_rows, declares_unit_norm, verify
from cache.writer import StoreWriter
from manifests.identity import changed_fields, digest

_LOST = ("missing", "size", "digest", "header")
_BAD_ROWS = {"nonfinite", "norm", "zero", "duplicate"}


@dataclass
class Repaired:
    """Result of a repair: findings, actions, and the number of rows now missing by table."""

    path: Path
    findings: list[Finding] = field(default_factory=list)  # before
    actions: list[str] = field(default_factory=list)
    lost: dict[str, int] = field(default_factory=dict)
    left: list[Finding] = field(default_factory=list)  # remaining errors

    @property
    def rows_lost(self) -> int:
        return sum(self.lost.values())

    def as_dict(self) -> dict[str, Any]:
        return {
            "store": str(self.path),
            "findings": [asdict(f) for f in self.findings],
            "actions": self.actions,
            "rows_lost": self.lost,
            "left": [asdict(f) for f in self.left],
        }

    def text(self) -> str:
        lines = [f"store  {self.path}", *(f"  found  {f}" for f in self.findings)]
        lines += [*(f"  done   {a}" for a in self.actions), *(f"  still  {f}" for f in self.left)]
        if not self.actions:
            lines.append("nothing to repair: " + ("every byte is as it should be" if not self.findings else "no error"))
        if self.rows_lost:
            lines.append("to do  " + ", ".join(f"{n:,} rows of table '{table}'" for table, n in self.lost.items() if n))
        return "\n".join(lines)


def repair(path: str | Path, identity: Manifest | None = None) -> Repaired:
    """Make the store at ``path`` consistent, without its damaged rows.

    ``identity``: dataset, extractor and fields, for a store whose manifest is lost or unreadable. Raise
    StoreNotFoundError, StoreBusyError while it is being written, StoreCorruptError if the manifest is unreadable and
    there is neither ``identity`` nor a readable copy of the fields in it.
    """
    path = Path(path)
    done = Repaired(path, [f for f in verify(path) if f.level != "note"])
    found = done.findings
    if any(f.code == "manifest" for f in found):
        _rebuild_manifest(path, identity, done)
        found = verify(path)
    with _open(path) as writer:
        before = list(writer.manifest.tables)
        bad = {f.place for f in found if f.code in _LOST}
        back = _put_back(path, writer.manifest, bad)
        done.actions += [f"put {name} back: its bytes were under the name {old}" for name, old in back.items()]
        for name in sorted(bad - back.keys()):
            table, rows_of = shard_number(name)[0], {s.file: s.rows for s in writer.manifest.shards}
            done.lost[table] = done.lost.get(table, 0) + rows_of[name]
        moved = writer.set_aside(sorted(bad - back.keys()))
        done.actions += [f"set aside as {name}" for name in moved]
        gone = (n for n in sorted(bad - back.keys()) if not any(m.startswith(f"{n}.") for m in moved))
        done.actions += [f"took {name} out of the manifest" for name in gone]
        rows: dict[str, int] = {}
        if {f.code for f in found} & _BAD_ROWS:
            keep, rows = _keep_good(Store(path, writer.manifest, verify="always"))
            writer.keep(keep)
        for table, count in rows.items():
            done.actions.append(f"dropped {count} bad or repeated rows of table '{table}'")
            done.lost[table] = done.lost.get(table, 0) + count
        codes = {f.code for f in done.findings}
        if "catalogue" in codes and _catalogue_is_lost(path, writer.manifest):
            writer.forget_catalogue()
            done.actions.append("took the unreadable catalog out of the manifest")
        if "ledger" in codes:
            done.actions.append(f"took {writer.repair_ledger()} damaged lines out of the ledger")
        done.actions += [f"table '{table}' has no row left" for table in before if table not in writer.manifest.tables]
    done.left = [f for f in verify(path) if f.level == "error"]
    return done


def _catalogue_is_lost(path: Path, manifest: Manifest) -> bool:
    try:
        Store(path, manifest).catalogue()
    except StoreError:
        return True
    return False


def _put_back(path: Path, manifest: Manifest, bad: set[str]) -> dict[str, str]:
    """Rename shards of ``bad`` whose exact bytes have another name in the folder; return shard -> that name."""
    wanted = {s.sha256: s for s in manifest.shards if s.file in bad}
    sizes = {s.bytes for s in wanted.values()}
    good = {s.file for s in manifest.shards} - bad
    held: dict[str, tuple[str, Path]] = {}
    for name in sorted(os.listdir(path)):
        file = path / name
        if name not in good and ".h5" in name and file.is_file() and file.stat().st_size in sizes:
            shard = wanted.pop(sha256_of(file), None)
            if shard is not None:
                held[shard.file] = name, path / f"{shard.file}.{shard.sha256[:8]}{REJECTED}"
    for name, keep in held.values():  # move all away first: two swapped shards have each other's names
        os.replace(path / name, keep)
    for name, (_, keep) in held.items():
        with suppress(FileNotFoundError):
            set_aside(path, name)
        os.replace(keep, path / name)
    sync_directory(path)
    return {name: old for name, (old, _) in held.items()}


def _open(path: Path) -> Rewriter:
    """Open the writer; set aside unlisted shards, which cannot be compared with damaged ones."""
    try:
        return Rewriter.of(path, "cache repair")
    except StoreCorruptError:
        for name in unlisted_shards(path, load_manifest(path)):
            set_aside(path, name)
        return Rewriter.of(path, "cache repair")


def _keep_good(store: Store) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """Return valid rows, bool [rows], and number of bad ones (NaN, Inf, norm, repeated key) of tables with bad rows."""
    masks, counts = {}, {}
    for table, info in store.tables.items():
        keep, start = np.ones(info.rows, dtype=bool), 0
        for shard in info.shards:
            for level, *_, rows in bad_rows(store.path / shard.file, shard, info, declares_unit_norm(store.fields)):
                if level == "error":
                    keep[start + rows] = False
            start += shard.rows
        keep[duplicates(store.keys(table))] = False  # readers find the first of equal keys
        if not keep.all():
            masks[table], counts[table] = keep, int((~keep).sum())
    return masks, counts


def _rebuild_manifest(path: Path, identity: Manifest | None, done: Repaired) -> None:
    """Build a new manifest from the shards whose receipts match; set the old one aside."""
    headers = _headers(path)
    known = identity or _salvage(path, {h.get("fingerprint") for h in headers.values()})
    if known is None:
        raise StoreCorruptError(
            f"{path / MANIFEST} is missing or unreadable, and what it said of the extractor with it: name the spec "
            "that the store was made for (`cache repair SPEC`), which writes it again"
        )
    other = sorted(name for name, h in headers.items() if h.get("fingerprint") != known.fingerprint)
    if other and len(other) == len(headers):
        raise StoreMismatchError(
            path, [f"fingerprint of {other[0]}: {headers[other[0]].get('fingerprint')} -> {known.fingerprint}"]
        )
    if (path / MANIFEST).exists():
        done.actions.append(f"set the damaged manifest aside as {set_aside(path, MANIFEST)}")
    about: Mapping[str, Any] = {"dataset": known.dataset, "extractor": known.extractor, "fields": known.fields}
    with StoreWriter(path, **about, execution={"command": "cache repair"}) as writer:
        rows = ", ".join(f"{info.rows} of '{name}'" for name, info in writer.manifest.tables.items()) or "none"
    done.actions.append(f"made a new manifest from the shards whose receipts match: rows {rows}")
    missing = [n for n in headers if not (path / n).exists()]
    done.actions += [f"set {n} aside: no receipt in the ledger vouches for its bytes" for n in sorted(missing)]


def _headers(path: Path) -> dict[str, dict[str, Any]]:
    """Read the headers of all readable shards, by file."""
    found = {}
    for name in os.listdir(path):
        with suppress(ValueError, OSError):
            shard_number(name)
            found[name] = read_header(path / name).attributes
    return found


def _salvage(path: Path, fingerprints: set[Any]) -> Manifest | None:
    """Return the fields of an edited or damaged manifest if their digest is in every shard's header."""
    try:
        about = json.loads((path / MANIFEST).read_bytes())
        fields = about["fields"]
        if isinstance(fields, dict) and {digest(fields)} == fingerprints and about["fingerprint"] == digest(fields):
            return Manifest(str(about["dataset"]), str(about["extractor"]), about["fingerprint"], fields, {})
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None


def check_identity(path: Path, identity: Manifest) -> None:
    """Raise StoreMismatchError if a readable manifest at ``path`` has other fields than ``identity``."""
    try:
        found = load_manifest(path)
    except (StoreCorruptError, StoreNotFoundError):
        return
    changed = changed_fields(found.fields, identity.fields)
    if changed:
        raise StoreMismatchError(path, changed)
