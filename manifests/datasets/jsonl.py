"""JSONL sessions: the format of custom datasets and of ``export``.

    <folder>/images.jsonl      one catalog image per line
        {"id": "i1", "file": "tops/i1.jpg"}                     a file below <images> (default: <folder>)
        {"id": "i2", "caption": "a red dress"}                  a caption in place of the image
        {"id": "i3", "file": "i3.jpg", "caption": "...", "attributes": {"color": ["red"]}}      all keys
    <folder>/sessions.jsonl    one session per line, two turns or more (see ``one_turn``), train or test
        {"id": "s1", "category": "dress", "split": "train", "target": "i3",
         "turns": [{"reference": "i1", "captions": ["is longer"]}, {"reference": "i2", "captions": ["has sleeves"]}]}
    <folder>/galleries.jsonl   optional: {"category": "dress", "split": "test", "images": ["i1", "i2", "i3"]}
    <folder>/dataset.json      optional: {"name": "...", "averaging": "categories" or "sessions", "notes": ["..."]}

A turn's target is the next turn's reference; the last turn's is the session's target. With ``"turn_targets": "final"``
in a session, in dataset.json or as an option, every turn's target is the session's. The option takes precedence over
the session's key, and the session's key over dataset.json. A turn without "reference" is text-only. A session's
``"also": [ids]`` are further correct images. A gallery that is not listed contains all images that the category's
sessions name, train and test. Blank lines are skipped; unknown keys are errors.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field, ValidationError

from manifests.datasets._export import DATASET, GALLERIES, IMAGES, SESSIONS, export
from manifests.datasets._files import option_folder, read_json, read_records
from manifests.datasets._images import ImageFolder, ImageOptions, inside
from manifests.datasets.base import DatasetSource
from manifests.errors import Problems
from manifests.options import problems_of
from manifests.protocols import Protocol
from manifests.schema import NO_IMAGE, Dataset, Frozen, Gallery, Image, Session, Split, TurnTargets

__all__ = ["JsonLines", "Options", "export"]

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"  # a dataset's name becomes a folder name


class Options(ImageOptions):
    """Folders are relative to the data folder, or absolute."""

    folder: str
    images: str | None = None  # folder of the files in images.jsonl; default: ``folder``
    label: str | None = Field(None, pattern=NAME)  # dataset name in stores and tables; default: that of dataset.json
    averaging: Literal["categories", "sessions"] | None = None
    turn_targets: TurnTargets | None = None  # "final": every turn has the session's target
    one_turn: bool = False  # accept sessions of one turn
    protocol: Protocol | None = None  # a clean split


class ImageRecord(Image):
    """Line of images.jsonl."""

    attributes: dict[str, tuple[str, ...]] = Field(default_factory=dict)


class About(Frozen):
    """Contents of dataset.json."""

    name: str | None = Field(None, pattern=NAME)
    averaging: Literal["categories", "sessions"] = "categories"
    notes: tuple[str, ...] = ()
    turn_targets: TurnTargets = "next"


class JsonLines(DatasetSource):
    title = "JSONL sessions"
    Options = Options

    @classmethod
    def read(cls, options: BaseModel, data: Path, problems: Problems) -> Dataset | None:
        assert isinstance(options, Options)
        folder = option_folder(data, options.folder, problems, "folder")
        images_root = option_folder(data, options.images, problems, "images") if options.images else folder
        if folder is None or images_root is None:
            return None
        about = _about(folder / DATASET, problems)
        records = _images(folder / IMAGES, problems)
        notes = list(about.notes)
        images_root, files = _files(folder / IMAGES, images_root, records, options, problems, notes)
        sessions = _sessions(folder / SESSIONS, problems, 1 if options.one_turn else 2)
        sessions = [_with_targets(s, options.turn_targets, about.turn_targets) for s in sessions]
        galleries = _galleries(folder / GALLERIES, sessions, problems)
        notes += _unlisted(records, galleries)
        return Dataset(
            name=options.label or about.name or _folder_name(folder),
            images={i: Image(id=i, file=files.get(i, r.file), caption=r.caption) for i, (_, r) in records.items()},
            sessions=tuple(sessions),
            galleries=tuple(galleries),
            images_root=images_root if any(r.file for _, r in records.values()) else None,
            averaging=options.averaging or about.averaging,
            attributes={i: dict(r.attributes) for i, (_, r) in records.items() if r.attributes},
            notes=tuple(notes),
        )


def _about(path: Path, problems: Problems) -> About:
    if not path.exists():
        return About()
    try:
        return About.model_validate(read_json(path, problems, dict) or {})
    except ValidationError as error:
        problems.found.extend(problems_of(error, About, str(path)))
        return About()


def _with_targets(session: Session, asked: TurnTargets | None, default: TurnTargets) -> Session:
    own = session.turn_targets if "turn_targets" in session.model_fields_set else default
    return session.model_copy(update={"turn_targets": asked or own})


def _folder_name(folder: Path) -> str:
    kept = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in folder.resolve().name)
    return kept.lstrip("._-") or "jsonl"


def _images(path: Path, problems: Problems) -> dict[str, tuple[int, ImageRecord]]:
    """Read image id -> (line, record)."""
    found: dict[str, tuple[int, ImageRecord]] = {}
    for line, record in read_records(path, ImageRecord, problems):
        if record.id in found:
            problems.add(f"line {line}", f"image {record.id!r} is also on line {found[record.id][0]}", file=path)
        else:
            found[record.id] = (line, record)
    return found


def _files(
    path: Path,
    root: Path,
    records: dict[str, tuple[int, ImageRecord]],
    options: ImageOptions,
    problems: Problems,
    notes: list[str],
) -> tuple[Path, dict[str, str]]:
    """Return the images folder and image id -> file below it, for the images that have one.

    Paths and links that lead out of the folder are problems, and so is a folder without any file; some missing files
    are a note.
    """
    named = {i: (line, r.file) for i, (line, r) in records.items() if r.file is not None}
    folder = ImageFolder(root, options)
    found = {i: folder.by_path(file) for i, (_, file) in named.items()}
    files = {i: file for i, file in found.items() if file is not None}
    missing = [named[i] for i, file in found.items() if file is None]
    outside = [(line, file) for line, file in missing if folder.below(file) is None]
    broken = bool(missing) and folder.report(problems)
    notes += folder.notes(bool(missing))
    if outside:
        line, file = outside[0]
        absolute = os.path.isabs(file)
        fix = "set dataset.images to the folder that holds them" if absolute else "use paths below it, without '..'"
        count = f"; {len(outside):,} of {len(named):,} files do" if len(outside) > 1 else ""
        what = f"file {file!r} leaves the images folder {root}{count}"
        problems.add(f"line {line}, key file", what, fix, file=path)
    elif missing and not files and not broken:
        line, file = missing[0]
        fix = "; ".join(["check the option images", *folder.left_out()])
        problems.add(f"line {line}, key file", f"{file!r} is not in {root}, nor is any other", fix, file=path)
    elif missing:
        count = f"{len(missing):,} of {len(named):,} image files are missing"
        first = f"first: {missing[0][1]}, line {missing[0][0]}"
        notes.append(f"{count} ({first}); extraction records them as failures")
    return inside(root, files, options.links, problems)


def _sessions(path: Path, problems: Problems, fewest: int) -> list[Session]:
    sessions: list[Session] = []
    lines: dict[str, int] = {}
    for line, session in read_records(path, Session, problems):
        if session.id in lines:
            what = f"session {session.id!r} is also on line {lines[session.id]}"
            problems.add(f"line {line}", what, "session ids must be unique", file=path)
        elif len(session.turns) < fewest:
            fix = "expected two or more; dataset.one_turn = true accepts it"
            problems.add(f"line {line}", f"session {session.id!r} has one turn", fix, file=path)
        else:
            sessions.append(session)
        lines.setdefault(session.id, line)
    if not lines and not problems.found:
        problems.add("", "holds no session", "expected one JSON object a line", file=path)
    return sessions


def _unlisted(images: Iterable[str], galleries: list[Gallery]) -> list[str]:
    """Return a note on images that no gallery contains, which therefore cannot be found."""
    listed = {image for gallery in galleries for image in gallery.images}
    every = list(images)
    missing = [image for image in every if image not in listed]
    if not missing:
        return []
    count = f"{len(missing):,} of {len(every):,} images are in no gallery and cannot be found (first: {missing[0]})"
    return [f"{count}: list the candidates in {GALLERIES}"]


def _galleries(path: Path, sessions: list[Session], problems: Problems) -> list[Gallery]:
    """Return the listed galleries; for any other (category, split), all images that the category's sessions name."""
    listed = list(read_records(path, Gallery, problems)) if path.exists() else []
    for (category, split), n in Counter((g.category, g.split) for _, g in listed).items():
        if n > 1:
            problems.add("", f"{n} galleries for {category}/{split}", "expected one a category and split", file=path)
    galleries = {(g.category, g.split): g for _, g in listed}
    named: dict[str, dict[str, None]] = {}
    used: dict[tuple[str, Split], None] = {}
    for session in sessions:
        used[session.category, session.split] = None
        images = (*(t.reference for t in session.turns if t.reference != NO_IMAGE), *session.correct)
        named.setdefault(session.category, {}).update(dict.fromkeys(images))
    for category, split in used:
        if (category, split) not in galleries:
            galleries[category, split] = Gallery(category=category, split=split, images=tuple(named[category]))
    return list(galleries.values())
