"""ChatIR (Levy et al., NeurIPS 2023): dialogues about a COCO image, a caption and ten question-answer rounds each.

    <file>      [{"img": "unlabeled2017/000000185565.jpg", "dialog": [caption, round 1, ..., round 10]}, ...]
    <images>/<img>      the COCO images
    <search_space>      a JSON list of further image paths below <images>, the rest of the gallery

The file is ``dialogues/VisDial_v1.0_queries_val.json`` of the public repository levymsn/ChatIR (2,064 dialogues of
VisDial's validation set). Turns are text-only, and each leads to the dialogue's image (``turn_targets`` "final").

Without ``images`` the task is facts to caption: the gallery is the captions of all dialogues, the ten rounds are the
turns, and the caption is the target, never a turn. With ``images`` the gallery is the images, and the caption is the
first turn, as in the paper.

The published split has 1,500 train dialogues: the first by SHA-256 of the image's path. The others are test.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from manifests.datasets._files import add_invalid, option_path, optional_folder, read_json, read_strings
from manifests.datasets._images import ImageFolder, ImageOptions, inside, note_missing
from manifests.datasets.base import DatasetSource
from manifests.errors import Problems
from manifests.schema import Dataset, Gallery, Image, Session, Split, Turn

CATEGORY = "coco"
TRAIN = 1500  # dialogues of the published split
Text = Annotated[str, StringConstraints(pattern=r"\S")]


class Options(ImageOptions):
    """Paths are relative to the data folder, or absolute."""

    file: str = "chatir/VisDial_v1.0_queries_val.json"
    images: str | None = None
    search_space: str | None = None  # with images: file of further gallery images
    train: int = Field(TRAIN, ge=0)  # number of train dialogues


class DialogRecord(BaseModel):
    """Dialogue: image path; caption, then rounds."""

    model_config = ConfigDict(frozen=True)

    img: str = Field(min_length=1)
    dialog: list[Text] = Field(min_length=3)


class ChatIR(DatasetSource):
    title = "ChatIR dialogues"
    Options = Options

    @classmethod
    def read(cls, options: BaseModel, data: Path, problems: Problems) -> Dataset | None:
        assert isinstance(options, Options)
        path = option_path(data, options.file, problems, "file")
        images_root = optional_folder(data, options.images, problems, "images")
        space = options.search_space and option_path(data, options.search_space, problems, "search_space")
        if space and not options.images:
            problems.add("key dataset.search_space", "names images, but dataset.images is not set", "set both or none")
        if path is None or (options.images and images_root is None):
            return None
        records = _records(path, problems)
        more = (read_strings(space, problems) or []) if space else []
        if problems.found:
            return None
        notes: list[str] = []
        ids = list(dict.fromkeys([*(r.img for r in records), *more]))
        files: dict[str, str] = {}
        if images_root:
            images_root, files = _files(images_root, ids, options, problems, notes)
        sessions = split_dialogues(records, options.train, images_root is not None)
        train = [s.target for s in sessions if s.split == "train"]
        notes.append(
            f"{len(train):,} train and {len(sessions) - len(train):,} test dialogues, by SHA-256 of the image's path; "
            + ("gallery of images" if images_root else "facts to caption: gallery of the captions of all dialogues")
        )
        captions = {} if images_root else {r.img: r.dialog[0] for r in records}
        return Dataset(
            name="chatir",
            images={i: Image(id=i, file=files.get(i), caption=captions.get(i)) for i in ids},
            sessions=tuple(sessions),
            galleries=(
                Gallery(category=CATEGORY, split="train", images=tuple(train)),
                Gallery(category=CATEGORY, split="test", images=tuple(ids)),
            ),
            images_root=images_root,
            averaging="sessions",
            notes=tuple(notes),
        )


def split_dialogues(records: list[DialogRecord], train: int, with_caption: bool) -> list[Session]:
    """Return the dialogues as sessions, in file order; the first ``train`` by SHA-256 of ``img`` are train sessions."""
    order = sorted(range(len(records)), key=lambda n: hashlib.sha256(records[n].img.encode()).digest())
    chosen = set(order[:train])
    sessions = []
    for number, record in enumerate(records):
        split: Split = "train" if number in chosen else "test"
        turns = tuple(Turn(captions=(text,)) for text in record.dialog[0 if with_caption else 1 :])
        name = f"chatir/{number:05d}"
        sessions.append(
            Session(id=name, category=CATEGORY, split=split, turns=turns, target=record.img, turn_targets="final")
        )
    return sessions


def _records(path: Path, problems: Problems) -> list[DialogRecord]:
    records, places = [], dict[str, int]()
    for index, value in enumerate(read_json(path, problems, list) or []):
        try:
            record = DialogRecord.model_validate(value)
        except ValidationError as error:
            add_invalid(error, DialogRecord, path, f"dialogue {index}", problems)
            continue
        if record.img in places:
            what = f"image {record.img!r} is also that of dialogue {places[record.img]}"
            problems.add(f"dialogue {index}, key img", what, "expected one dialogue per image", file=path)
        places.setdefault(record.img, index)
        records.append(record)
    if not records and not problems.found:
        problems.add("", "holds no dialogue", "expected a JSON list of {img, dialog}", file=path)
    return records


def _files(
    root: Path, ids: list[str], options: ImageOptions, problems: Problems, notes: list[str]
) -> tuple[Path, dict[str, str]]:
    folder = ImageFolder(root, options)
    files = {i: file for i in ids if (file := folder.by_path(i)) is not None}
    missing = [i for i in ids if i not in files]
    notes += folder.notes(bool(missing))
    if not files:
        problems.add("key dataset.images", f"holds no image such as {ids[0]}", "check the folder", file=root)
    else:
        note_missing(notes, missing, ids, f"have no file in {root.name}/")
    return inside(root, files, options.links, problems)
