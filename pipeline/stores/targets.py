"""Resolve command-line words to stores or specs."""

from __future__ import annotations

import json
from pathlib import Path

from cache import list_stores
from cache.errors import StoreNotFoundError
from cache.layout import LEDGER, MANIFEST
from manifests.errors import nearest
from manifests.load import shipped
from manifests.schema import RunSpec
from pipeline.core.workspace import Workspace


def find_store(word: str, out: Path) -> Path | None:
    """Return the folder of store ``word``: a path, a name from ``ls stores``, its last part, or its fingerprint.

    None if there is no such store. Raises StoreNotFoundError naming all matches if there are several.
    """
    for path in (Path(word), out / "stores" / word):
        if path.is_dir() and ((path / MANIFEST).exists() or (path / LEDGER).exists() or any(path.glob("*-*.h5"))):
            return path
    if not word or "/" in word:
        return None
    folders = [p for p in sorted((out / "stores").glob("*/*")) if p.is_dir()]
    digits = word[:12] if len(word) >= 4 else None
    fits = [p for p in folders if p.name == word or (digits and p.name.rpartition("-")[2].startswith(digits))]
    if len(fits) > 1:
        names = ", ".join(str(p.relative_to(out / "stores")) for p in fits)
        raise StoreNotFoundError(f"{word!r} names several stores: {names}; give one of these names")
    return fits[0] if fits else None


def require_store(word: str, out: Path) -> Path:
    """Return ``find_store``'s result. Raises StoreNotFoundError with the nearest name if there is none."""
    if (found := find_store(word, out)) is None:
        raise StoreNotFoundError(f"there is no store {word!r} in {out / 'stores'}: {nearest(word, _names(out))}")
    return found


def _names(out: Path) -> list[str]:
    return [str(store.path.relative_to(out / "stores")) for store in list_stores(out / "stores")]


def is_spec(word: str, out: Path) -> bool:
    """Return True if ``word`` is a spec: a shipped name or a .toml file, unless a store has that name.

    Raises StoreNotFoundError naming the nearest store and spec if it is neither.
    """
    if find_store(word, out) is not None:
        return False
    known = shipped("runs")
    if word in known or Path(word).suffix == ".toml":
        return True
    store = f"a store in {out / 'stores'} ({nearest(word, _names(out))})"
    raise StoreNotFoundError(f"{word!r} is neither {store} nor a spec ({nearest(word, known)})")


def last_store(workspace: Workspace, spec: RunSpec) -> Path:
    """Return the store of the last extraction of ``spec``, even if its dataset or extractor has changed since.

    Raises IncompleteError if a spec of this name was never extracted.
    """
    records = workspace.earlier_records(spec)
    if workspace.note(spec) is None and records:
        values = json.loads(records[-1].read_text(encoding="utf-8"))
    else:
        values = vars(workspace.extracted(spec))
    return workspace.stores / (values["store"] or values["backbone"])
