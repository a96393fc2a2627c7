"""Dialogues with retracted and negated wishes, as JSONL.

    <folder>/dialogues.jsonl    one dialogue per line, two turns or more
        {"session_id": "d1", "split": "test", "category": "dress", "target_ids": ["i9"],
         "turns": [{"reference_image_id": "i1", "text": "with a belt", "operation": "add"},
                   {"text": "no stripes", "operation": "negate"},
                   {"text": "forget the belt", "operation": "retract", "retracts": 1}]}
    <captions>                  {"image id": "caption"}: captions in place of the images
    <images>/**/<id>.jpg|.png

``operation``: "add" (default), "negate" (a wish for something absent) or "retract" (an earlier turn, by its number in
``retracts``, no longer holds). Every turn leads to the final target; a turn without ``reference_image_id`` is text-only;
several ``target_ids`` are all correct. The layout is this project's: TraceCIR and RevCIR describe such dialogues, and no
published file was available, so it is tested on made files only.

``retracted = "dropped"`` leaves out the turns that a later one retracts, and the retractions: dialogues as a perfect
bookkeeper would pass them on, an upper bound for a memory on the same sessions.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from manifests.datasets._files import option_folders, option_path, read_captions, read_records
from manifests.datasets._images import ImageOptions, catalogue
from manifests.datasets.base import DatasetSource
from manifests.errors import Problems
from manifests.schema import NO_IMAGE, Dataset, Gallery, Session, Split, Turn

FILE = "dialogues.jsonl"


class Options(ImageOptions):
    """Paths are relative to the data folder, or absolute."""

    folder: str = "revisions"
    captions: str | None = None
    images: str | None = None
    retracted: Literal["kept", "dropped"] = "kept"


class RevisedTurn(BaseModel):
    """Turn of a dialogue. ``retracts``: number of the earlier turn that a retraction withdraws, from 1."""

    model_config = ConfigDict(extra="forbid")

    text: str = Field(pattern=r"\S")
    reference_image_id: str = Field(NO_IMAGE, min_length=1)
    operation: Literal["add", "negate", "retract"] = "add"
    retracts: int | None = Field(None, ge=1)


class DialogueRecord(BaseModel):
    """Line of dialogues.jsonl."""

    model_config = ConfigDict(extra="forbid")

    session_id: str = Field(min_length=1)
    split: Split
    category: str = Field("all", min_length=1)
    target_ids: list[str] = Field(min_length=1)
    turns: list[RevisedTurn] = Field(min_length=2)

    @model_validator(mode="after")
    def _retracts_an_earlier_turn(self) -> DialogueRecord:
        for number, turn in enumerate(self.turns, start=1):
            if (turn.operation == "retract") != (turn.retracts is not None):
                raise ValueError(f"turn {number}: 'retracts' belongs to operation 'retract', which needs it")
            if turn.retracts is not None and turn.retracts >= number:
                raise ValueError(f"turn {number} retracts turn {turn.retracts}, which is not an earlier one")
        return self

    def kept(self) -> list[RevisedTurn]:
        """Return the turns that still hold at the end, without the retractions; the last turn if none is left."""
        gone = {turn.retracts for turn in self.turns}
        held = [t for n, t in enumerate(self.turns, start=1) if n not in gone and t.operation != "retract"]
        return held or self.turns[-1:]


class Revisions(DatasetSource):
    title = "Dialogues with retracted and negated wishes"
    Options = Options

    @classmethod
    def read(cls, options: BaseModel, data: Path, problems: Problems) -> Dataset | None:
        assert isinstance(options, Options)
        root, images_root = option_folders(data, options, problems, "folder", "images")
        captions_path = options.captions and option_path(data, options.captions, problems, "captions")
        if root is None:
            return None
        captions = (read_captions(captions_path, problems) or {}) if captions_path else None
        sessions: list[Session] = []
        counts = {"negate": 0, "retract": 0}
        for _, record in read_records(root / FILE, DialogueRecord, problems):
            for turn in record.turns:
                if turn.operation in counts:
                    counts[turn.operation] += 1
            turns = record.turns if options.retracted == "kept" else record.kept()
            sessions.append(_session(record, turns))
        if not sessions and not problems.found:
            problems.add("", "holds no dialogue", "expected one JSON object per line", file=root / FILE)
        notes = [
            f"{counts['retract']:,} retractions and {counts['negate']:,} negations in {len(sessions):,} dialogues; "
            f"retracted wishes are {options.retracted}"
        ]
        galleries = _galleries(sessions)
        ids = dict.fromkeys(image for gallery in galleries for image in gallery.images)
        images_root, images = catalogue(ids, images_root, captions, problems, notes, options)
        return Dataset(
            name="revisions",
            images=images,
            sessions=tuple(sessions),
            galleries=galleries,
            images_root=images_root,
            averaging="sessions",
            notes=tuple(notes),
        )


def _session(record: DialogueRecord, turns: list[RevisedTurn]) -> Session:
    target, *also = record.target_ids
    about = {"id": record.session_id, "category": record.category, "split": record.split, "target": target}
    said = tuple(Turn(reference=turn.reference_image_id, captions=(turn.text,)) for turn in turns)
    return Session(**about, turns=said, turn_targets="final", also=also)


def _galleries(sessions: list[Session]) -> tuple[Gallery, ...]:
    """Return one gallery per category and split: all images that the category's dialogues name."""
    named: dict[str, dict[str, None]] = {}
    for s in sessions:
        references = (turn.reference for turn in s.turns if turn.reference != NO_IMAGE)
        named.setdefault(s.category, {}).update(dict.fromkeys((*references, *s.correct)))
    places = dict.fromkeys((s.category, s.split) for s in sessions)
    return tuple(Gallery(category=c, split=split, images=tuple(named[c])) for c, split in places)
