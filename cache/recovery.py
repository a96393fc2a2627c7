"""Recovery when a writer opens a store: remove temporary files of a dead writer and recover its finished shards.

The order of a commit is: temporary file, checked and synced; receipt in the ledger; rename; manifest. So a shard
under its final name that the manifest does not list was either renamed just before a crash (its receipt has its
digest, and it is recovered), or is foreign (it is set aside as ``<name>.<digest8>.rejected``, never read, never
deleted). Temporary files are deleted. The catalog is either the old or the new one, complete.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from cache.files import sync_directory
from cache.layout import CATALOGUE, REJECTED, TABLES, is_temporary, shard_number
from cache.ledger import Ledger
from cache.manifest import Manifest
from cache.reader import Store
from cache.shards import examine
from cache.stat_cache import sha256_of


def remove_temporaries(directory: Path) -> list[str]:
    """Delete the temporary files in ``directory`` and return their names. Requires the writer's lock."""
    names = sorted(name for name in os.listdir(directory) if is_temporary(name))
    for name in names:
        (directory / name).unlink(missing_ok=True)
    return names


def unlisted_shards(directory: Path, manifest: Manifest) -> list[str]:
    """Return the files with names of shards that the manifest does not list, by table and number."""
    listed = {s.file for s in manifest.shards}
    found = []
    for name in os.listdir(directory):
        try:
            table, number = shard_number(name)
        except ValueError:
            continue
        if name not in listed:
            found.append((TABLES.index(table), number, name))
    return [name for *_, name in sorted(found)]


def set_aside(directory: Path, name: str) -> str:
    """Rename a file to ``<name>.<digest8>.rejected``; return the new name. Raise FileNotFoundError."""
    aside = f"{name}.{sha256_of(directory / name)[:8]}{REJECTED}"
    os.replace(directory / name, directory / aside)
    return aside


def adopt_unlisted(directory: Path, manifest: Manifest, mine: Callable[[], object] = lambda: None) -> Manifest:
    """Return the manifest with every unlisted shard that verifies; set the others aside. ``mine`` raises if another
    writer has the store."""
    names = unlisted_shards(directory, manifest)
    if not names:
        return manifest
    promised = {(r.shard, r.sha256) for r in Ledger(directory).receipts()}
    for name in names:
        sha256 = sha256_of(directory / name)
        adopted = _adopt(directory, manifest, name, sha256) if (name, sha256) in promised else None
        if adopted is None:
            mine()
            os.replace(directory / name, directory / f"{name}.{sha256[:8]}{REJECTED}")
            sync_directory(directory)
        else:
            manifest = adopted
    return manifest


def _adopt(directory: Path, manifest: Manifest, name: str, sha256: str) -> Manifest | None:
    """Return ``manifest`` with the shard ``name``, or None if its header or keys do not fit the table."""
    table, number = shard_number(name)
    try:
        found = examine(directory / name, name, manifest, sha256)
    except (OSError, ValueError):
        return None
    if number < manifest.next_number(table) or (Store(directory, manifest).find(table, found.keys) >= 0).any():
        return None
    return manifest.with_shard(table, found.dim, found.dtype, found.shard)


def recover_catalogue(directory: Path, manifest: Manifest) -> Manifest:
    """Return the manifest with an interrupted replacement of the catalog settled: the binding on disk is valid."""
    info = manifest.catalogue
    if info is None or info.replaces is None:
        return manifest
    try:
        found = sha256_of(directory / CATALOGUE)
    except FileNotFoundError:
        found = ""
    right = next((i for i in (info, info.replaces) if i.sha256 == found), None)  # None: lost; the next bind writes it
    return replace(manifest, catalogue=replace(right, replaces=None) if right else None)
