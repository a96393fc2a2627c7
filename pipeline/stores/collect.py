"""Garbage collection for specs: keep the rows that their datasets reference, in every shared store."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from cache import Store, StoreNotFoundError, list_stores
from cache.gc import Collected, collect
from cache.lease import Lease
from manifests.errors import FashionNTMError
from pipeline.core.workspace import ASIDE, Workspace, size_of
from pipeline.stores.wanted import StoreRequest
from pipeline.training.runs import list_runs


class SharedStoreError(FashionNTMError):
    """Another spec, which was not named, uses the store too."""


def collect_specs(requests: Sequence[StoreRequest], *, dry_run: bool, alone: bool = False) -> list[Collected]:
    """Collect every store of the first spec; rows that any of ``requests`` needs are kept.

    Raises IncompleteError if nothing is extracted for the first spec; SharedStoreError if an unnamed spec was
    extracted into one of the stores, unless ``alone``.
    """
    return [collect_store(path, requests, dry_run=dry_run, alone=alone) for path in extracted_stores(requests[0])]


def extracted_stores(request: StoreRequest) -> list[Path]:
    """Return the stores of a spec as it is now. Raises IncompleteError if there is none yet."""
    paths = [wanted.path for wanted in request.stores if (wanted.path / "manifest.json").exists()]
    if not paths:
        what = f"nothing is extracted for spec '{request.spec.name}' as it is now in {request.workspace.out}"
        raise StoreNotFoundError(f"{what}: run `{request.spec.command('extract')}`")
    return paths


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
    users = {name: given for name, given in specs_using(requests[0].workspace, path).items() if name not in named}
    if users:
        shown = [f"'{name}'" + (f" ({given})" if given != name else "") for name, given in users.items()]
        keep = shlex.join(word for given in users.values() for word in ("--keep-for", given))
        gone = [given for given in users.values() if given.endswith(".toml") and not Path(given).is_file()]
        lost = f"; {', '.join(gone)} is no longer there, so its rows can only be given up" if gone else ""
        what = f"{path} was also extracted for spec {', '.join(shown)}"
        why, fix = f"may need rows that {', '.join(sorted(named))} does not", f"name it too ({keep})"
        raise SharedStoreError(f"{what}, which {why}: {fix}, or give --alone to go ahead{lost}")


def specs_using(workspace: Workspace, path: Path) -> dict[str, str]:
    """Return name -> spec file or shipped name, of the specs whose last extraction wrote to the store at ``path``."""
    found = {}
    for note, about in _records(workspace):
        if any(name and _same(workspace.stores / name, path) for name in (about["backbone"], about["store"])):
            name = str(about.get("spec", note.stem))
            found[name] = str(about.get("given") or name)
    return found


def superseded(workspace: Workspace, dataset: str) -> list[Path]:
    """Return the stores of a dataset that no extraction record names: of earlier models, options or weights."""
    names = (about[kind] for _, about in _records(workspace) for kind in ("backbone", "store"))
    used = {(workspace.stores / name).resolve() for name in names if name}
    stores = [store.path for store in list_stores(workspace.stores) if store.path.parent.name == dataset]
    return [path for path in stores if path.resolve() not in used]


def remove_superseded(workspace: Workspace, dataset: str, *, dry_run: bool) -> list[dict[str, Any]]:
    """Remove the superseded stores of a dataset; return their paths, bytes, and ids of the runs trained on them.

    Raises StoreBusyError, before anything is removed, while one of them is being written.
    """
    runs: dict[str, list[str]] = {}
    for folder in list_runs(workspace.runs):
        with suppress(FashionNTMError, OSError, KeyError, TypeError):
            runs.setdefault(str(folder.record()["identity"]["store"]), []).append(folder.id)
    paths, found = superseded(workspace, dataset), []
    for path in paths:
        trained = next((ids for store, ids in runs.items() if store.startswith(path.name.rpartition("-")[2])), [])
        found.append({"path": str(path), "bytes": size_of(path), "runs": trained})
    leases = [] if dry_run else [Lease(path) for path in paths]
    for path, lease in zip(paths, leases, strict=False):
        aside = workspace.out / f"{ASIDE}{path.name}"
        path.rename(aside)
        lease.release()
        shutil.rmtree(aside)
    return found


def superseded_text(found: Sequence[dict[str, Any]], dry_run: bool) -> str:
    lines = []
    for store in found:
        ids = store["runs"]
        runs = f"; {len(ids):,} runs were trained on it ({', '.join(ids[:3])})" if ids else ""
        lines.append(f"{store['path']}  {store['bytes']:,} bytes{runs}")
    done, total = "would be removed" if dry_run else "removed", sum(store["bytes"] for store in found)
    return "\n".join([*lines, f"{len(found):,} superseded stores {done}, {total:,} bytes"])


def _records(workspace: Workspace) -> list[tuple[Path, dict[str, Any]]]:
    """Return (file, content) of the extraction records that can be read."""
    found = []
    for note in sorted((workspace.out / "extracted").glob("*.json")):
        with suppress(OSError, ValueError, KeyError, TypeError):
            about = json.loads(note.read_text(encoding="utf-8"))
            found.append((note, {**about, "backbone": about["backbone"], "store": about["store"]}))
    return found
