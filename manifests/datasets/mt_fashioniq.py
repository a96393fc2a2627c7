"""Multi-turn FashionIQ (Yuan and Lam, SIGIR 2021; paper section 4.1), in the layout of its public repository.

    <annotations>/data/<category>.<split>.json
        [{"target": [url, id], "reference": [[url, [captions], id], ...]}, ...]
    <annotations>/image_splits/split.<category>.<split>.json
        ["id", ...]: the gallery
    <annotations>/attr/asin2attr.<category>.<split>.new.json
        {"id": [six lists of words]}, read with attributes = true
    <captions>/image_captions_<category>_<split>.json
        {"id": "caption"}: BLIP-2 captions in place of the images
    <images>/**/<id>.jpg|.png

Categories dress, shirt, toptee; splits train and val. The upstream val split is this project's test split. "Overall"
is the mean of the three categories. Sessions of one turn (unless ``one_turn``) and blank captions next to others
are dropped; ``Dataset.notes`` reports it.
"""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel

from manifests.datasets._files import option_folders, read_captions, read_json, read_strings
from manifests.datasets._images import ImageOptions, catalogue
from manifests.datasets.base import DatasetSource
from manifests.errors import Problems
from manifests.protocols import Protocol
from manifests.schema import Dataset, Gallery, Session, Split, Turn

CATEGORIES = ("dress", "shirt", "toptee")
UPSTREAM: dict[Split, str] = {"train": "train", "test": "val"}
# The files name no fields; the six lists are words of DeepFashion's attribute types, in this order.
FIELDS = ("category", "texture", "fabric", "shape", "part", "style")


class Options(ImageOptions):
    """Folders are relative to the data folder, or absolute."""

    annotations: str = "mt_fashioniq"
    captions: str | None = None  # folder of BLIP-2 captions in place of the images
    images: str | None = None
    attributes: bool = False
    one_turn: bool = False  # keep sessions of one turn
    protocol: Protocol | None = None  # a clean split


class _Parsed(NamedTuple):
    sessions: list[Session]
    dropped: list[str]
    blank: int


class MultiTurnFashionIQ(DatasetSource):
    title = "Multi-turn FashionIQ"
    Options = Options

    @classmethod
    def read(cls, options: BaseModel, data: Path, problems: Problems) -> Dataset | None:
        assert isinstance(options, Options)
        folders = option_folders(data, options, problems, "annotations", "captions", "images")
        root, captions_root, images_root = folders
        if root is None:
            return None
        sessions: list[Session] = []
        galleries: list[Gallery] = []
        notes: list[str] = []
        blank = 0
        for category in CATEGORIES:
            for split, name in UPSTREAM.items():
                parsed = _sessions(
                    root / "data" / f"{category}.{name}.json", category, split, problems, options.one_turn
                )
                sessions += parsed.sessions
                blank += parsed.blank
                notes += [f"dropped session {i}: it has one turn" for i in parsed.dropped]
                listed_ids = read_strings(root / "image_splits" / f"split.{category}.{name}.json", problems)
                galleries.append(Gallery(category=category, split=split, images=tuple(listed_ids or ())))
        if blank:
            notes.append(f"blank caption strings left out of turns that have other captions: {blank}")
        # A dict keeps the order: gallery by gallery, then images that only sessions name.
        ids = dict.fromkeys(chain.from_iterable(g.images for g in galleries))
        listed = len(ids)
        ids |= dict.fromkeys(i for s in sessions for i in (*(t.reference for t in s.turns), s.target))
        if len(ids) > listed:
            notes.append(f"session images in no image_splits list, added to the catalog: {len(ids) - listed}")
        captions = image_captions(captions_root, galleries, ids, problems, notes) if captions_root else None
        source = f"{captions_root.name}/" if captions_root else ""
        images_root, images = catalogue(ids, images_root, captions, problems, notes, options, source)
        return Dataset(
            name="mt_fashioniq",
            images=images,
            sessions=tuple(sessions),
            galleries=tuple(galleries),
            images_root=images_root,
            averaging="categories",
            attributes=_attributes(root / "attr", ids, problems) if options.attributes else {},
            notes=tuple(notes),
        )


def _sessions(path: Path, category: str, split: Split, problems: Problems, one_turn: bool = False) -> _Parsed:
    parsed, dropped, blank = [], [], 0
    for index, record in enumerate(read_json(path, problems, list) or []):
        place = f"session {index}"
        if not isinstance(record, dict) or not {"target", "reference"} <= record.keys():
            problems.add(place, f"found {str(record)[:60]!r}", "expected keys 'target' and 'reference'", file=path)
            continue
        target, references = record["target"], record["reference"]
        if not _is_row(target, 2):
            problems.add(f"{place} target", f"found {str(target)[:60]!r}", "expected [url, image id]", file=path)
            continue
        turns = []
        for number, reference in enumerate(references if isinstance(references, list) else [references], start=1):
            where = f"{place} turn {number}"
            if not _is_row(reference, 3) or not _is_strings(reference[1]):
                found = f"found {str(reference)[:60]!r}"
                problems.add(where, found, "expected [url, [captions], image id]", file=path)
                continue
            kept = tuple(caption for caption in reference[1] if caption.strip())
            if not kept:
                problems.add(where, "empty caption", "every feedback text needs at least one word", file=path)
                continue
            blank += len(reference[1]) - len(kept)
            turns.append(Turn(reference=reference[2], captions=kept))
        session_id = f"{category}/{split}/{index:05d}"
        if len(turns) >= 2 or (one_turn and len(turns) == len(references) == 1):
            parsed.append(Session(id=session_id, category=category, split=split, turns=tuple(turns), target=target[1]))
        elif isinstance(references, list) and len(references) == 1:
            dropped.append(session_id)
        elif references == []:
            problems.add(place, "no turns", "expected at least two", file=path)
    return _Parsed(parsed, dropped, blank)


def _is_row(value: Any, length: int) -> bool:
    return isinstance(value, list) and len(value) == length and isinstance(value[-1], str) and bool(value[-1])


def _is_strings(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(v, str) for v in value)


def image_captions(
    root: Path, galleries: list[Gallery], ids: dict[str, None], problems: Problems, notes: list[str]
) -> dict[str, str]:
    """Return one caption per image. The caption files overlap and differ in a few captions: an image has the caption of
    the first category whose gallery lists it (train file before val), else of the first file that has it."""
    merged: dict[str, dict[str, str]] = {category: {} for category in CATEGORIES}
    for category in CATEGORIES:
        for name in UPSTREAM.values():
            found = read_captions(root / f"image_captions_{category}_{name}.json", problems) or {}
            merged[category] = found | merged[category]
    own: dict[str, str] = {}
    for gallery in galleries:
        for image in gallery.images:
            own.setdefault(image, gallery.category)
    captions, differ = {}, 0
    for image in ids:
        order = dict.fromkeys((own.get(image, CATEGORIES[0]), *CATEGORIES))
        candidates = [merged[category][image] for category in order if image in merged[category]]
        differ += len(set(candidates)) > 1
        if candidates:
            captions[image] = candidates[0]
    if differ:
        notes.append(f"images with another caption in another category's file (their own category's is used): {differ}")
    if ids and not captions:
        problems.add("key dataset.captions", "holds no caption of any image", "expected image ids as keys", file=root)
    return captions


def _attributes(root: Path, ids: dict[str, None], problems: Problems) -> dict[str, dict[str, tuple[str, ...]]]:
    """Return words by field for the images that have any. Lists come in groups of six, all for the same six fields."""
    words: dict[str, dict[str, dict[str, None]]] = {}
    for category in CATEGORIES:
        for name in UPSTREAM.values():
            path = root / f"asin2attr.{category}.{name}.new.json"
            for image, lists in (read_json(path, problems, dict) or {}).items():
                good = isinstance(lists, list) and len(lists) % len(FIELDS) == 0 and all(map(_is_strings, lists))
                if not good:
                    found = f"found {str(lists)[:60]!r}"
                    problems.add(f"key {image!r}", found, "expected six lists of words", file=path)
                elif image in ids:
                    fields = words.setdefault(image, {})
                    for index, values in enumerate(lists):
                        kept = (word for word in values if word)
                        fields.setdefault(FIELDS[index % len(FIELDS)], {}).update(dict.fromkeys(kept))
    return {i: lists for i in ids if (lists := {f: tuple(v) for f, v in words.get(i, {}).items() if v})}
