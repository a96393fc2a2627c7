"""Garbage collection for specs: keep the rows that their datasets reference, in every shared store."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cache import Store, StoreNotFoundError
from cache.gc import Collected, collect
from manifests.errors import FashionNTMError
from pipeline.core.workspace import Workspace
from pipeline.stores.wanted import StoreRequest


class SharedStoreError(FashionNTMError):
    """Another spec, which was not named, uses the store too."""


def collect_specs(requests: Sequence[StoreRequest], *, dry_run: bool, alone: bool = False) -> list[Collected]:
    """Collect every store of the first spec; rows that any of ``requests`` needs are kept.

    Raises IncompleteError if nothing is extracted for the first spec; SharedStoreError if an unnamed spec was
    extracted into one of the stores, unless ``alone``.
    """
    paths = [wanted.path for wanted in requests[0].stores if (wanted.path / "manifest.json").exists()]
    if not paths:
        raise nothing_extracted(requests[0])
    return [collect_store(path, requests, dry_run=dry_run, alone=alone) for path in paths]


def nothing_extracted(request: StoreRequest) -> StoreNotFoundError:
    return StoreNotFoundError(
        f"nothing is extracted for spec '{request.spec.name}' as it is now in {request.workspace.out}: "
        f"run `{request.spec.command('extract')}`"
    )


def collect_store(path: Path, requests: Sequence[StoreRequest], *, dry_run: bool, alone: bool = False) -> Collected:
    """Collect one store for the specs of ``requests``; specs with other stores keep no rows in it.

    Without ``requests``, only leftover files are deleted. Raises OtherStoreError if it is the store of none of them.
    """
    if not requests:
        return collect(path, None, dry_run=dry_run)
    store = Store.open(path)
    users = [r for r in requests if any(_same(w.path, path) for w in r.stores)]
    if not users:
        requests[0].own_store(store)  # raises, naming the command to run
        users = [requests[0]]  # renamed or copied folder: its fields match the spec
    if not alone:
        _refuse_shared(path, requests)
    needed: dict[str, list[np.ndarray]] = {}
    images: set[str] = set()
    for request in users:
        for table, keys in request.own_store(store).keys(store, request.dataset).items():
            needed.setdefault(table, []).append(keys)
        images |= request.dataset.images.keys()
    return collect(path, {t: np.concatenate(parts) for t, parts in needed.items()}, images, dry_run=dry_run)


def _same(a: Path, b: Path) -> bool:
    return a.resolve() == b.resolve()


def _refuse_shared(path: Path, requests: Sequence[StoreRequest]) -> None:
    named = {request.spec.name for request in requests}
    others = [spec for spec in specs_using(requests[0].workspace, path) if spec not in named]
    if others:
        raise SharedStoreError(
            f"{path} was also extracted for spec {', '.join(map(repr, others))}, which may need rows that "
            f"{', '.join(sorted(named))} does not: name it too (--keep-for {others[0]}), or give --alone to go ahead"
        )


def specs_using(workspace: Workspace, path: Path) -> list[str]:
    """Return the names of the specs whose last extraction wrote to the store at ``path``."""
    found = []
    for note in sorted((workspace.out / "extracted").glob("*.json")):
        try:
            about = json.loads(note.read_text(encoding="utf-8"))
            stores = [about["backbone"], about["store"]]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if any(name and _same(workspace.stores / name, path) for name in stores):
            found.append(about.get("spec", note.stem))
    return list(dict.fromkeys(found))
