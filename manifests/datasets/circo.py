"""CIRCO (Baldrati et al. 2023): single-turn composed retrieval over COCO images, with several ground truths per query.

    <annotations>    [{"id": 0, "reference_img_id": 271520, "target_img_id": 355099, "relative_caption": "...",
                       "gt_img_ids": [355099, ...]}, ...]        the file val.json
    <gallery>        {"images": [{"id": 271520, ...}, ...]}      COCO's image_info_unlabeled2017.json
    <images>/**/<id of 12 digits>.jpg

Every query is a test session of one turn; there are no train sessions. Session ids are query ids and image ids are COCO's,
so that ``results --format circo`` writes a server file and ``score`` its mAP@K over all ground truths; a session's target is
``target_img_id`` alone. Without ``gallery``, the gallery is the images that the file names, which is smaller and easier.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel

from manifests.datasets._files import option_path, optional_folder, read_json
from manifests.datasets._images import ImageOptions, catalogue
from manifests.datasets.base import DatasetSource
from manifests.errors import Problems
from manifests.schema import Dataset, Gallery, Image, Session, Turn
from manifests.text import brief

CATEGORY = "circo"


class Options(ImageOptions):
    """Paths are relative to the data folder, or absolute."""

    annotations: str = "circo/val.json"
    gallery: str | None = None
    images: str | None = None


class Circo(DatasetSource):
    title = "CIRCO, single-turn"
    Options = Options

    @classmethod
    def read(cls, options: BaseModel, data: Path, problems: Problems) -> Dataset | None:
        assert isinstance(options, Options)
        path = option_path(data, options.annotations, problems, "annotations")
        listing = option_path(data, options.gallery, problems, "gallery") if options.gallery else None
        images_root = optional_folder(data, options.images, problems, "images")
        if path is None:
            return None
        sessions, named = _queries(path, problems)
        notes: list[str] = []
        ids = named
        if listing is not None:
            listed = (read_json(listing, problems, dict) or {}).get("images", [])
            found = dict.fromkeys(str(i["id"]) for i in listed if isinstance(i, dict) and isinstance(i.get("id"), int))
            ids = found | named
        else:
            notes.append(f"gallery: the {len(named):,} images that {path.name} names, not COCO's 123,403")
        files = {f"{int(i):012d}": i for i in ids if i.isdecimal()}
        images_root, stored = catalogue(dict.fromkeys(files), images_root, None, problems, notes, options)
        images = {files[name]: Image(id=files[name], file=image.file) for name, image in stored.items()}
        return Dataset(
            name="circo",
            images=images,
            sessions=tuple(sessions),
            galleries=(Gallery(category=CATEGORY, split="test", images=tuple(ids)),),
            images_root=images_root,
            averaging="sessions",
            notes=tuple(notes),
        )


def _queries(path: Path, problems: Problems) -> tuple[list[Session], dict[str, None]]:
    """Return (one session per query, ids of all images that the file names)."""
    made: list[Session] = []
    named: dict[str, None] = {}
    for index, record in enumerate(read_json(path, problems, list) or []):
        query = _query(record)
        if query is None:
            fix = "expected id, reference_img_id, target_img_id, gt_img_ids and relative_caption (val.json)"
            problems.add(f"entry {index}", f"found {brief(record)}", fix, file=path)
            continue
        name, reference, target, truths, text = query
        named |= dict.fromkeys(map(str, (reference, target, *truths)))
        turn = Turn(reference=str(reference), captions=(text,))
        made.append(Session(id=name, category=CATEGORY, split="test", turns=(turn,), target=str(target)))
    return made, named


def _query(record: Any) -> tuple[str, int, int, list[int], str] | None:
    if not isinstance(record, dict):
        return None
    keys = ("reference_img_id", "target_img_id", "gt_img_ids", "relative_caption")
    found: list[Any] = [record.get(key) for key in keys]
    reference, target, truths, text = found
    numbers = [reference, target, record.get("id"), *(truths if isinstance(truths, list) else [None])]
    if not all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in numbers):
        return None
    return (str(record["id"]), reference, target, truths, text) if isinstance(text, str) and text.strip() else None
