"""Reading the user's data files: every missing or malformed file, line or key is reported, none is fatal at once.

All readers take ``problems`` and give back None (or leave the record out) for what they could not read, so that a
dataset module can go on and find what else is wrong.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from manifests.errors import Problems
from manifests.options import problems_of
from manifests.text import JsonError, brief, decode_text, parse_json

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
