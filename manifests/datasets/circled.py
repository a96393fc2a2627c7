"""CIRCLED (Takeda et al. 2026, CC BY 4.0): multi-turn sessions of 2 to 6 turns on FashionIQ, CIRR and CIRCO.

    <folder>/<subset>.json, or <folder>/data/<subset>.json          a JSON list of sessions
        {"session_id": "fashioniq_dress_val_0000", "subset": "fashioniq_dress_val", "ground_truth_ids": ["id"],
         "num_turns": 2, "turns": [{"turn": 1, "reference_image_id": "id", "relative_caption": "..."}, ...]}
    <image_splits>/split.<category>.<train|val>.json        FashionIQ's own galleries: ["id", ...]
    <captions>/image_captions_<category>_<train|val>.json   captions in place of the images: {"id": "caption"}
    <images>/**/<id>.jpg|.png

The session layout follows the dataset's published card and its authors' converter (public repository
mti-lab/circled). It has been tested on files made in that layout, not on a downloaded copy. Subset names end in
``_train`` or ``_val``; val is this project's test split; the rest is the category (``fashioniq_dress`` is "dress").

CIRCLED defines no galleries. With ``image_splits`` they are FashionIQ's own lists for the split. Otherwise a gallery
contains all images that the subset's sessions name, which is smaller and easier; ``Dataset.notes`` says which one it
is. A session with several ground truths (CIRCO) has the first as its target and all of them as correct images (mAP@K). Each turn's text describes the change
from the selected image to the final target, not to the next reference: ``turn_targets`` is "final".
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, ValidationError, field_validator

from manifests.datasets._files import add_invalid, option_folders, read_captions, read_json, read_strings
from manifests.datasets._images import ImageOptions, catalogue
from manifests.datasets.base import DatasetSource
from manifests.errors import Problems
from manifests.schema import Dataset, Gallery, Session, Split, Turn

SPLITS: dict[str, Split] = {"train": "train", "val": "test"}
FASHIONIQ = tuple(f"fashioniq_{c}_{s}" for c in ("dress", "shirt", "toptee") for s in SPLITS)


class Options(ImageOptions):
    """Folders are relative to the data folder, or absolute."""

    folder: str = "circled"
    subsets: tuple[str, ...] = Field(FASHIONIQ, min_length=1)
    image_splits: str | None = None
    captions: str | None = None
    images: str | None = None

    @field_validator("subsets")
    @classmethod
    def _named_by_split(cls, subsets: tuple[str, ...]) -> tuple[str, ...]:
        for subset in subsets:
            category, _, split = subset.rpartition("_")
            if split not in SPLITS or not category.replace("_", "").isalnum():
                raise ValueError(f"{subset!r}: a subset's name is letters, digits and '_', and ends in _train or _val")
        if len(set(subsets)) < len(subsets):
            raise ValueError("a subset is listed twice")
        return subsets


class TurnRecord(BaseModel):
    """Turn of a session; other keys are ignored."""

    turn: int
    reference_image_id: str = Field(min_length=1)
    relative_caption: str = Field(pattern=r"\S")


class SessionRecord(BaseModel):
    """Session; other keys are ignored."""

    session_id: str = Field(min_length=1)
    subset: str
    ground_truth_ids: list[str] = Field(min_length=1)
    num_turns: int
    turns: list[TurnRecord] = Field(min_length=2)


class Circled(DatasetSource):
    title = "CIRCLED"
    Options = Options

    @classmethod
    def read(cls, options: BaseModel, data: Path, problems: Problems) -> Dataset | None:
        assert isinstance(options, Options)
        folders = option_folders(data, options, problems, "folder", "image_splits", "captions", "images")
        root, splits_root, captions_root, images_root = folders
        if root is None:
            return None
        sessions: list[Session] = []
        galleries: list[Gallery] = []
        captions: dict[str, str] = {}
        notes: list[str] = []
        several = 0
        for subset in options.subsets:
            category, _, name = subset.removeprefix("fashioniq_").rpartition("_")
            split = SPLITS[name]
            found, more = _sessions(root, subset, category, split, problems)
            sessions += found
            several += more
            if splits_root:
                listed = read_strings(splits_root / f"split.{category}.{name}.json", problems) or []
            else:
                listed = list(_named(found))
                size = f"the {len(listed):,} images of its sessions"
                notes.append(f"gallery of {category}/{split}: {size}, not the whole split")
            galleries.append(Gallery(category=category, split=split, images=tuple(listed)))
            if captions_root:
                path = captions_root / f"image_captions_{category}_{name}.json"
                captions = (read_captions(path, problems) or {}) | captions  # the first of two captions is used
        if several:
            notes.append(f"sessions with several ground truths (the first is the target, mAP@K counts all): {several}")
        ids = dict.fromkeys(i for g in galleries for i in g.images) | _named(sessions)
        given, source = (captions, f"{captions_root.name}/") if captions_root else (None, "")
        images_root, images = catalogue(ids, images_root, given, problems, notes, options, source)
        return Dataset(
            name="circled",
            images=images,
            sessions=tuple(sessions),
            galleries=tuple(galleries),
            images_root=images_root,
            averaging="categories",
            notes=tuple(notes),
        )


def _named(sessions: list[Session]) -> dict[str, None]:
    """Return the images that the sessions name, in order."""
    return dict.fromkeys(i for s in sessions for i in (*(t.reference for t in s.turns), *s.correct))


def _sessions(root: Path, subset: str, category: str, split: Split, problems: Problems) -> tuple[list[Session], int]:
    """Return the subset's sessions and the number of sessions with several ground truths."""
    path = next((p for p in (root / f"{subset}.json", root / "data" / f"{subset}.json") if p.exists()), None)
    if path is None:
        fix = f"nor data/{subset}.json: add it, or leave it out of subsets"
        problems.add("", "no such file", fix, file=root / f"{subset}.json")
        return [], 0
    sessions, several = [], 0
    for index, value in enumerate(read_json(path, problems, list) or []):
        try:
            record = SessionRecord.model_validate(value)
        except ValidationError as error:
            add_invalid(error, SessionRecord, path, f"session {index}", problems)
            continue
        numbers = [turn.turn for turn in record.turns]
        if record.num_turns != len(numbers) or numbers != sorted(set(numbers)):
            what = f"turns {numbers}, num_turns {record.num_turns}"
            problems.add(f"session {index}", what, "expected num_turns turns in order", file=path)
        elif record.subset != subset:
            problems.add(f"session {index}, key subset", f"found {record.subset!r}", f"expected {subset!r}", file=path)
        else:
            several += len(record.ground_truth_ids) > 1
            turns = tuple(Turn(reference=t.reference_image_id, captions=(t.relative_caption,)) for t in record.turns)
            target, *also = record.ground_truth_ids
            about: dict[str, Any] = {"id": record.session_id, "category": category, "split": split, "target": target}
            sessions.append(Session(**about, turns=turns, turn_targets="final", also=also))
    return sessions, several
