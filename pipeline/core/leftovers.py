"""Folders that a removal sets aside in the output folder before it deletes them; a killed removal leaves them there."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

ASIDE = ".removed-"  # prefix of their names


def removal_leftovers(out: Path) -> dict[str, int]:
    """Return the folders that killed ``runs rm`` and ``cache gc`` left in ``out``, with their bytes."""
    return {str(path): size_of(path) for path in sorted(out.glob(f"{ASIDE}*")) if path.is_dir()}


def remove_leftovers(out: Path, *, dry_run: bool) -> dict[str, int]:
    """Remove the ``removal_leftovers``; return them."""
    found = removal_leftovers(out)
    for path in () if dry_run else found:
        shutil.rmtree(path, ignore_errors=True)  # the removal that set it aside may still be running
    return found


def leftovers_text(found: Mapping[str, int], dry_run: bool) -> str:
    """Return one line per folder."""
    would = "would be " if dry_run else ""
    return "\n".join(
        f"debris {path} ({size:,} bytes) of an interrupted removal {would}removed" for path, size in found.items()
    )


def size_of(folder: Path) -> int:
    """Return the bytes of all files below a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
