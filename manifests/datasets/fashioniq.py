"""FashionIQ (Wu et al. 2021), the single-turn benchmark: every annotated pair is a session of one turn.

    <annotations>/captions/cap.<category>.<train|val>.json
        [{"candidate": reference id, "target": id, "captions": ["...", "..."]}, ...]
    <annotations>/image_splits/split.<category>.<train|val>.json
        ["id", ...]
    <captions>/image_captions_<category>_<train|val>.json   captions in place of the images
    <images>/**/<id>.jpg|.png

Categories dress, shirt, toptee. The upstream val split is this project's test split; the upstream test split has no
targets. Two gallery protocols are in use: "original", all images of the split's list, and "val", the reference and
target images of the val pairs, which is smaller and easier. "Overall" is the mean of the three categories. Both
captions of a pair are joined in file order.
"""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel

from manifests.datasets._files import option_folders, read_json, read_strings
from manifests.datasets._images import ImageOptions, catalogue
from manifests.datasets.base import DatasetSource
from manifests.datasets.mt_fashioniq import CATEGORIES, UPSTREAM, image_captions
from manifests.errors import Problems
from manifests.schema import Dataset, Gallery, Session, Split, Turn

Protocol = Literal["original", "val"]


class Options(ImageOptions):
    """Folders are relative to the data folder, or absolute."""

    annotations: str = "fashioniq"
    gallery: Protocol = "original"
    captions: str | None = None  # folder of captions in place of the images
    images: str | None = None


class FashionIQ(DatasetSource):
    title = "FashionIQ, single-turn"
    Options = Options

    @classmethod
    def read(cls, options: BaseModel, data: Path, problems: Problems) -> Dataset | None:
        assert isinstance(options, Options)
        folders = option_folders(data, options, problems, "annotations", "captions", "images")
        root, captions_root, images_root = folders
        if root is None:
            return None
        sessions: list[Session] = []
        lists: list[Gallery] = []
        notes: list[str] = []
        for category in CATEGORIES:
            for split, name in UPSTREAM.items():
                sessions += _pairs(root / "captions" / f"cap.{category}.{name}.json", category, split, problems)
                ids = read_strings(root / "image_splits" / f"split.{category}.{name}.json", problems)
                lists.append(Gallery(category=category, split=split, images=tuple(ids or ())))
        # The catalog is the same for both protocols, so that one store serves both.
        every = dict.fromkeys(chain.from_iterable(g.images for g in lists))
        listed = len(every)
        every |= dict.fromkeys(i for s in sessions for i in (s.turns[0].reference, s.target))
        if len(every) > listed:
            notes.append(f"pair images in no image_splits list, added to the catalog: {len(every) - listed}")
        captions = image_captions(captions_root, lists, every, problems, notes) if captions_root else None
        source = f"{captions_root.name}/" if captions_root else ""
        images_root, images = catalogue(every, images_root, captions, problems, notes, options, source)
        galleries = lists if options.gallery == "original" else [_named(g, sessions) for g in lists]
        notes.append(f"gallery protocol: {options.gallery}")
        return Dataset(
            name="fashioniq",
            images=images,
            sessions=tuple(sessions),
            galleries=tuple(galleries),
            images_root=images_root,
            averaging="categories",
            notes=tuple(notes),
        )


def _named(gallery: Gallery, sessions: list[Session]) -> Gallery:
    """Return the gallery of the VAL protocol: the images that the split's pairs of the category name."""
    mine = [s for s in sessions if (s.category, s.split) == (gallery.category, gallery.split)]
    images = dict.fromkeys(i for s in mine for i in (s.turns[0].reference, s.target))
    return gallery.model_copy(update={"images": tuple(images)})


def _pairs(path: Path, category: str, split: Split, problems: Problems) -> list[Session]:
    made = []
    for index, record in enumerate(read_json(path, problems, list) or []):
        found = _pair(record)
        if found is None:
            what = f"found {str(record)[:80]!r}"
            problems.add(f"entry {index}", what, "expected candidate, target, and captions with a word", file=path)
            continue
        reference, target, captions = found
        turn = Turn(reference=reference, captions=captions)
        session_id = f"{category}/{split}/{index:05d}"
        made.append(Session(id=session_id, category=category, split=split, turns=(turn,), target=target))
    return made


def _pair(record: Any) -> tuple[str, str, tuple[str, ...]] | None:
    if not isinstance(record, dict):
        return None
    reference, target, captions = record.get("candidate"), record.get("target"), record.get("captions")
    if not (isinstance(reference, str) and reference and isinstance(target, str) and target):
        return None
    kept = tuple(c for c in captions if isinstance(c, str) and c.strip()) if isinstance(captions, list) else ()
    return (reference, target, kept) if kept else None
