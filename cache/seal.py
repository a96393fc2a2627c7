"""Seals: a folder's digest manifest, for results that are written once and read by path (runs, evaluations, composers).

``seal.json`` has the kind and id of the folder, and size and SHA-256 of each sealed file. It is written last and
atomically, with a digest of itself. A folder without a seal is older than this format and is read unchecked.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from cache.errors import StoreError
from cache.files import replace_atomically
from cache.stat_cache import remembered_digest
from manifests.identity import digest

SEAL = "seal.json"
RESULTS_SEAL = "results.seal.json"  # seal of an evaluation, stored next to its run
FORMAT = 1


class SealError(StoreError):
    """The files or the identity of a sealed folder differ from its seal."""


def write_seal(
    folder: Path,
    kind: str,
    name: str,
    files: Iterable[str],
    seal: str = SEAL,
    last: Callable[[], object] = lambda: None,
) -> None:
    """Seal ``files`` of ``folder`` with identity ``kind`` and ``name``. Raise OSError if one of them cannot be read.

    ``last`` is called just before the seal is published; if it raises, no seal is published.
    """
    sealed = {f: {"bytes": (folder / f).stat().st_size, "sha256": remembered_digest(folder / f)} for f in files}
    about = {"format": FORMAT, "kind": kind, "id": name, "files": sealed}
    text = json.dumps({**about, "digest": digest(about)}, indent=1, ensure_ascii=False) + "\n"
    replace_atomically(folder / seal, text.encode(), last=last)


def check_seal(
    folder: Path, kind: str, name: str | None, again: str, seal: str = SEAL, only: Sequence[str] | None = None
) -> bool:
    """Check every sealed file of ``folder`` (or those in ``only``); return whether the folder is sealed.

    Raise SealError for a damaged seal, for a seal of another kind or id (``name`` None: any id), and for a file that
    is missing, not sealed, or changed. ``again``: end of the message, how to recreate the folder.
    """
    path = folder / seal
    try:
        about = json.loads(path.read_bytes())
        whole = about.pop("digest") == digest(about) and about["format"] == FORMAT
        found, files = (about["kind"], about["id"]), dict(about["files"])
    except FileNotFoundError:
        return False
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise SealError(f"{path}: damaged, not a seal ({error!r}): {again}") from None
    if not whole:
        raise SealError(f"{path}: damaged, its digest does not match its content: {again}")
    if found != (kind, name or found[1]):
        raise SealError(
            f"{folder}: its seal is of {found[0]} {found[1]}, not of {kind} {name or folder.name}: "
            f"the folder was copied or renamed; {again}"
        )
    for file in files if only is None else only:
        _check_file(folder / file, files.get(file), again)
    return True


def _check_file(path: Path, sealed: dict[str, Any] | None, again: str) -> None:
    if sealed is None:
        raise SealError(f"{path}: not among the files of its seal: {again}")
    try:
        size = path.stat().st_size
        found = remembered_digest(path) if size == sealed["bytes"] else ""
    except FileNotFoundError:
        raise SealError(f"{path}: missing, though its folder was sealed with it: {again}") from None
    except OSError as error:
        raise SealError(f"{path}: cannot be read ({error.strerror or error}): {again}") from None
    if not found:
        raise SealError(f"{path}: damaged, {size} bytes where {sealed['bytes']} were sealed: {again}")
    if found != sealed["sha256"]:
        raise SealError(f"{path}: damaged, SHA-256 {found[:12]} where {sealed['sha256'][:12]} was sealed: {again}")
