"""Reading the user's data files: every missing or malformed file, line or key is reported, none is fatal at once.

All readers take ``problems`` and give back None (or leave the record out) for what they could not read, so that a
dataset module can go on and find what else is wrong.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from manifests.errors import Problems
from manifests.options import problems_of
from manifests.schema import Image
from manifests.text import JsonError, brief, decode_text, parse_json

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
M = TypeVar("M", bound=BaseModel)


def climbs(path: str) -> bool:
    """True when a relative path names something outside the folder it is relative to, or is not relative."""
    windows, posix = PureWindowsPath(path), PurePosixPath(path)
    rooted = bool(windows.drive or windows.root) or posix.is_absolute()
    return rooted or ".." in windows.parts or ".." in posix.parts or "\0" in path


def option_path(data: Path, given: str, problems: Problems, key: str) -> Path | None:
    """A path from the options: absolute, or relative to the data folder and inside it (no ``..``)."""
    if os.path.isabs(given):
        return Path(given)
    if climbs(given):
        fix = "use an absolute path, or one without '..'"
        problems.add(f"key dataset.{key}", f"{given!r} leaves the data folder", fix)
        return None
    return data / given


def option_folder(data: Path, given: str, problems: Problems, key: str) -> Path | None:
    """``option_path`` that must be an existing folder."""
    path = option_path(data, given, problems, key)
    if path is not None and not path.is_dir():
        what = "is not a folder" if path.exists() else "no such folder"
        problems.add(f"key dataset.{key}", what, "check this key and --data", file=path)
        return None
    return path


def optional_folder(data: Path, given: str | None, problems: Problems, key: str) -> Path | None:
    """``option_folder`` of a key that may be left out."""
    return option_folder(data, given, problems, key) if given else None


def read_text(path: Path, problems: Problems) -> str | None:
    """The file's text (UTF-8, or as its byte order mark says), its lines ending in a newline alone."""
    try:
        return decode_text(path.read_bytes())
    except FileNotFoundError:
        problems.add("", "no such file", "this dataset needs it", file=path)
    except UnicodeDecodeError as error:
        problems.add(f"byte {error.start}", "not UTF-8 text", f"{error.reason}; save the file as UTF-8", file=path)
    except OSError as error:
        problems.add("", f"cannot be read: {error.strerror or error}", file=path)
    return None


def read_json(path: Path, problems: Problems, kind: type) -> Any | None:
    """The file's JSON value when it is of ``kind`` (list or dict)."""
    text = read_text(path, problems)
    if text is None:
        return None
    try:
        value = parse_json(text)
    except JsonError as error:
        problems.add(error.place, error.reason, file=path)
        return None
    if not isinstance(value, kind):
        expected = {list: "a JSON list", dict: "a JSON object"}[kind]
        problems.add("", f"found {type(value).__name__}", f"expected {expected}", file=path)
        return None
    return value


def read_names(path: Path, problems: Problems) -> list[str] | None:
    """One name a line, blank lines left out."""
    text = read_text(path, problems)
    return None if text is None else [name for line in text.split("\n") if (name := line.strip())]


def read_strings(path: Path, problems: Problems) -> list[str] | None:
    """A JSON list of non-empty strings."""
    values = read_json(path, problems, list)
    if values is None:
        return None
    for index, value in enumerate(values):
        if not isinstance(value, str) or not value:
            problems.add(f"entry {index}", f"found {brief(value)}", "expected an image id", file=path)
    return [value for value in values if isinstance(value, str) and value]


def read_captions(path: Path, problems: Problems) -> dict[str, str] | None:
    """A JSON object image id -> caption. Blank captions count as none."""
    values = read_json(path, problems, dict)
    if values is None:
        return None
    for image, caption in values.items():
        if not isinstance(caption, str):
            problems.add(f"key {image!r}", f"found {brief(caption)}", "expected the image's caption", file=path)
    return {image: caption for image, caption in values.items() if isinstance(caption, str) and caption.strip()}


def read_records(path: Path, model: type[M], problems: Problems) -> Iterator[tuple[int, M]]:
    """(line number, record) for every line of a JSONL file that fits ``model``; blank lines are left out."""
    text = read_text(path, problems)
    if (whole := whole_json(text or "")) is not None:
        problems.add("", f"{whole}; one object per line is expected", "in Python: json.dumps of each", file=path)
        return
    # Not splitlines(): it also breaks at U+2028 and the like, which JSON strings may hold.
    for number, line in enumerate((text or "").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            yield number, model.model_validate_json(line)
        except ValidationError as error:
            add_invalid(error, model, path, f"line {number}", problems)


def whole_json(text: str) -> str | None:
    """ "a JSON list" or "a JSON object over several lines" when a line-based file is one of these."""
    start = text.lstrip()[:1]
    if start == "[":
        return "a JSON list"
    first = text.lstrip().partition("\n")[0].strip()
    return "a JSON object over several lines" if first == "{" else None


def add_invalid(error: ValidationError, model: type[BaseModel], path: Path, place: str, problems: Problems) -> None:
    """Report what is wrong with one record of a file, at ``place`` and key."""
    found = [(p.place.removeprefix("key").strip(), p) for p in problems_of(error, model, str(path))]
    for key, problem in found:
        # A list is "too short" for the sake of its wrong entries: those say enough.
        if not any(other.startswith(key + ".") for other, _ in found):
            problems.add(f"{place}, key {key}" if key else place, problem.what, problem.fix, file=path)


def index_images(root: Path) -> dict[str, str]:
    """File name -> path below ``root`` (with ``/``) of every image file in it and its subfolders.

    Of two files with one name the first in sorted order counts. Links to folders are not followed.
    """
    found: dict[str, str] = {}
    for folder, subfolders, names in os.walk(root):
        subfolders.sort()
        below = Path(folder).relative_to(root)
        for name in sorted(names):
            if name.lower().endswith(IMAGE_SUFFIXES):
                found.setdefault(name, (below / name).as_posix())
    return found


def find_image(index: Mapping[str, str], image: str) -> str | None:
    """The file of an image id, which is a file name or a file name without its suffix."""
    stem = image[: image.rfind(".")] if image.lower().endswith(IMAGE_SUFFIXES) else image
    names = (image, *(stem + suffix for suffix in IMAGE_SUFFIXES))
    return next((index[name] for name in names if name in index), None)


def find_images(root: Path, images: Iterable[str], problems: Problems, key: str) -> tuple[dict[str, str], str]:
    """Files below ``root`` by image id, and a note (empty when every image has one). None found is a problem."""
    index, wanted = index_images(root), list(images)
    files = {image: file for image in wanted if (file := find_image(index, image)) is not None}
    missing = [image for image in wanted if image not in files]
    if wanted and not files:
        fix = f"expected files such as {missing[0]}.jpg" if "." not in missing[0] else f"expected {missing[0]}"
        problems.add(f"key dataset.{key}", "holds no image of this dataset", fix, file=root)
    return files, missing_note(missing, len(wanted), f"have no file in {root.name}/")


def catalogue(
    ids: Iterable[str], images: Path | None, captions: Mapping[str, str] | None, problems: Problems, notes: list[str]
) -> dict[str, Image]:
    """``ids`` in order, each with its file below the folder ``images`` and its caption; None: the dataset was given none."""
    ids, files = list(ids), {}
    if images:
        files, note = find_images(images, ids, problems, "images")
        notes += [note] if note else []
    if images is None and captions is None:
        notes.append("no images and no captions given: sessions and galleries only")
    return {i: Image(id=i, file=files.get(i), caption=(captions or {}).get(i)) for i in ids}


def missing_note(missing: list[str], total: int, what: str) -> str:
    """E.g. ``38 of 13,578 images have no caption (first: B000ABC)``; empty when none is missing."""
    if not missing:
        return ""
    return f"{len(missing):,} of {total:,} images {what} (first: {missing[0]}); extraction records them as failures"
