"""CIRR (Liu et al. 2021): single-turn composed retrieval over NLVR2 images; every annotated pair is a one-turn session.

    <annotations>/captions/cap.rc2.<train|val>.json
        [{"pairid": 12, "reference": name, "target_hard": name, "caption": "...", "img_set": {"members": [names]}}, ...]
    <annotations>/image_splits/split.rc2.<train|val>.json    {name: "./dev/name.png"}: the gallery
    <images>/**/<name>.png|.jpg

Val is this project's test split; the upstream test split has no targets. Session ids are pair ids, so that ``results
--format cirr`` writes a server file and ``score`` its R_subset@K. One category; references stay in the gallery here, while
CIRR takes them out, as ``score`` does.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel

from manifests.datasets._files import option_folders, read_json
from manifests.datasets._images import ImageOptions, catalogue
from manifests.datasets.base import DatasetSource
from manifests.errors import Problems
from manifests.schema import Dataset, Gallery, Session, Split, Turn
from manifests.text import brief

CATEGORY = "cirr"
UPSTREAM: dict[Split, str] = {"train": "train", "test": "val"}


class Options(ImageOptions):
    """Folders are relative to the data folder, or absolute."""

    annotations: str = "cirr"
    images: str | None = None
    train: bool = True  # read the train pairs too, to fit a composer or an extractor


class Cirr(DatasetSource):
    title = "CIRR, single-turn"
    Options = Options

    @classmethod
    def read(cls, options: BaseModel, data: Path, problems: Problems) -> Dataset | None:
        assert isinstance(options, Options)
        root, images_root = option_folders(data, options, problems, "annotations", "images")
        if root is None:
            return None
        sessions: list[Session] = []
        galleries: list[Gallery] = []
        notes: list[str] = []
        for split, name in UPSTREAM.items():
            if split == "test" or options.train:
                sessions += _pairs(root / "captions" / f"cap.rc2.{name}.json", split, problems)
                names = read_json(root / "image_splits" / f"split.rc2.{name}.json", problems, dict) or {}
                galleries.append(Gallery(category=CATEGORY, split=split, images=tuple(names)))
        ids = dict.fromkeys(image for gallery in galleries for image in gallery.images)
        ids |= dict.fromkeys(i for s in sessions for i in (s.turns[0].reference, s.target))
        images_root, images = catalogue(ids, images_root, None, problems, notes, options)
        return Dataset(
            name="cirr",
            images=images,
            sessions=tuple(sessions),
            galleries=tuple(galleries),
            images_root=images_root,
            averaging="sessions",
            notes=tuple(notes),
        )


def _pairs(path: Path, split: Split, problems: Problems) -> list[Session]:
    made = []
    for index, record in enumerate(read_json(path, problems, list) or []):
        words = [_text(record, key) for key in ("pairid", "reference", "target_hard", "caption")]
        if not all(words):
            fix = "expected pairid, reference, target_hard and caption"
            problems.add(f"entry {index}", f"found {brief(record)}", fix, file=path)
            continue
        pair, reference, target, caption = words
        turn = Turn(reference=reference, captions=(caption,))
        made.append(Session(id=pair, category=CATEGORY, split=split, turns=(turn,), target=target))
    return made


def _text(record: Any, key: str) -> str:
    value = record.get(key) if isinstance(record, dict) else None
    return str(value).strip() if isinstance(value, str | int) and not isinstance(value, bool) else ""
