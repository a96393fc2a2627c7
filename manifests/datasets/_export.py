"""Export a dataset as JSONL sessions (format: ``jsonl.py``)."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from manifests.errors import FashionNTMError
from manifests.schema import Dataset

IMAGES, SESSIONS, GALLERIES, DATASET = "images.jsonl", "sessions.jsonl", "galleries.jsonl", "dataset.json"


def export(dataset: Dataset, folder: Path, copy_images: bool = False) -> dict[str, Any]:
    """Write ``dataset`` to ``folder`` as JSONL; return the options with which ``jsonl`` reads it back.

    Image files are not copied (option ``images`` names their folder) unless ``copy_images`` is set: then existing
    files are copied to ``<folder>/files``. Files of an earlier export are replaced, each one atomically.
    """
    folder.mkdir(parents=True, exist_ok=True)
    options: dict[str, Any] = {"folder": str(folder.resolve())}
    if dataset.images_root is not None:
        root = dataset.images_root
        if copy_images:
            root = folder / "files"
            _copy(dataset, root)
        options["images"] = str(root.resolve())
    images = []
    for image in dataset.images.values():
        record: dict[str, Any] = image.model_dump(exclude_none=True)
        if attributes := dataset.attributes.get(image.id):
            record["attributes"] = attributes
        images.append(record)
    _write(folder / IMAGES, images)
    _write(folder / SESSIONS, (s.model_dump() for s in dataset.sessions))
    _write(folder / GALLERIES, (g.model_dump() for g in dataset.galleries))
    about = {"name": dataset.name, "averaging": dataset.averaging, "notes": dataset.notes}
    _write(folder / DATASET, [about])
    return options


def _write(path: Path, records: Iterable[dict[str, Any]]) -> None:
    part = path.with_name(f".{path.name}.part-{os.getpid()}")
    try:
        with open(part, "w", encoding="utf-8", newline="\n") as handle:
            handle.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _copy(dataset: Dataset, to: Path) -> None:
    assert dataset.images_root is not None
    for image in dataset.images.values():
        if image.file is not None and (source := dataset.images_root / image.file).is_file():
            target = to / image.file
            if not target.resolve().is_relative_to(to.resolve()):
                raise FashionNTMError(f"image {image.id!r}: file {image.file!r} leaves {to}: use a path without '..'")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
