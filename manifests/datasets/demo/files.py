"""Render the catalog to a folder once: all images or none, with a stamp that identifies them."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
from collections import deque
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from manifests.datasets.demo.catalogue import Item
from manifests.datasets.demo.render import render
from manifests.errors import FashionNTMError
from manifests.identity import digest

RENDERER = 1  # version of the code that determines the images; part of the stamp
QUALITY = 90
IMAGES_A_PROCESS = 100  # fewer are rendered sooner than a process starts
MANY = 10_000  # images that take minutes
STAMP = "demo.json"
IMAGES = "images"


class FolderError(FashionNTMError):
    """The demo's folder contains other files."""


def file_of(item: Item) -> str:
    """Return the item's image file, relative to the folder."""
    return f"{IMAGES}/{item.id}.jpg"


def stamp_of(items: tuple[Item, ...], seed: int, size: int, grows: str = "") -> dict:
    """Return the identity of the folder's images: equal stamps mean equal pixels (for one Pillow version).

    ``grows``: identity of a nested catalog, whose images are the same in every size (``Catalogue.grows``).
    """
    content = (
        {"catalogue": grows}
        if grows
        else {"images": len(items), "garments": digest([[i.id, i.garment] for i in items])}
    )
    return {"renderer": RENDERER, "seed": seed, "size": size, "quality": QUALITY, **content}


def write_images(items: tuple[Item, ...], folder: Path, seed: int, size: int, grows: str = "") -> bool:
    """Render the images that ``folder`` lacks; return whether images were rendered.

    A folder with another stamp is replaced as a whole. Raise FolderError if it contains files that are not the demo's.
    """
    stamp = stamp_of(items, seed, size, grows)
    old = _stamp(folder)
    there = {p.name for p in (folder / IMAGES).glob("*.jpg")} if old == stamp else set()
    missing = [item for item in items if Path(file_of(item)).name not in there]
    if not missing:
        return False
    if folder.exists() and old is None and any(folder.iterdir()):
        raise FolderError(f"{folder} is no folder of demo images (it has no {STAMP}): name another with dataset.folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        (made / IMAGES).mkdir()
        if len(missing) >= MANY:
            print(f"demo: rendering {len(missing):,} images into {folder}, once", file=sys.stderr, flush=True)
        _render_all([(item, made / file_of(item), seed, size) for item in missing])
        if there:
            for item in missing:
                os.replace(made / file_of(item), folder / file_of(item))
            return True
        (made / STAMP).write_text(json.dumps(stamp, indent=2) + "\n")
        made.chmod(0o755)
        _replace(made, folder, stamp)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return True


def _render_all(tasks: list[tuple[Item, Path, int, int]]) -> None:
    """Render in a process per CPU, or in this one for few images; an image depends on its item and the seed alone."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = min(cpus, len(tasks) // IMAGES_A_PROCESS)
    if workers < 2 or multiprocessing.current_process().daemon:
        for task in tasks:
            _render(task)
        return
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else None)
    with ProcessPoolExecutor(workers, context) as pool:
        deque(pool.map(_render, tasks, chunksize=16), maxlen=0)  # raises the first error


def _render(task: tuple[Item, Path, int, int]) -> None:
    item, path, seed, size = task
    picture = render(item.category, item.garment, size, random.Random(f"demo image {seed} {item.id}"))
    picture.save(path, quality=QUALITY)


def _stamp(folder: Path) -> dict | None:
    try:
        found = json.loads((folder / STAMP).read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _replace(made: Path, folder: Path, stamp: dict) -> None:
    """Move the finished folder into place; keep the folder of a faster process with the same images."""
    if folder.exists():
        old = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        os.replace(folder, old)  # replaces the empty directory
        shutil.rmtree(old, ignore_errors=True)
    try:
        os.replace(made, folder)
    except OSError:
        if _stamp(folder) != stamp:
            raise
