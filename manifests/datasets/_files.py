"""Read the user's data files and report every missing or malformed file, line or key.

Readers add unreadable parts to ``problems`` and return None (or skip the record), so that a dataset module can
continue and find further problems.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from manifests._download_files import FILES
from manifests.errors import Problems
from manifests.kinds import UNKNOWN, UNPACK, kind_of_bytes
from manifests.options import problems_of
from manifests.text import JsonError, brief, decode_text, parse_json, read_bounded

M = TypeVar("M", bound=BaseModel)


def climbs(path: str) -> bool:
    """Return whether a path leads out of its base folder, or is not relative."""
    windows, posix = PureWindowsPath(path), PurePosixPath(path)
    rooted = bool(windows.drive or windows.root) or posix.is_absolute()
    return rooted or ".." in windows.parts or ".." in posix.parts or "\0" in path


def option_path(data: Path, given: str, problems: Problems, key: str) -> Path | None:
    """Return a path of the options: absolute, or relative to the data folder and inside it (no ``..``)."""
    if os.path.isabs(given):
        return Path(given)
    if climbs(given):
        fix = "use an absolute path, or one without '..'"
        problems.add(f"key dataset.{key}", f"{given!r} leaves the data folder", fix)
        return None
    return data / given


def option_folder(data: Path, given: str, problems: Problems, key: str) -> Path | None:
    """Return ``option_path`` if it is an existing folder; otherwise add a problem and return None."""
    path = option_path(data, given, problems, key)
    if path is not None and not path.is_dir():
        what = "is not a folder" if path.exists() else "no such folder"
        problems.add(f"key dataset.{key}", what, f"check this key and --data{_download(path)}", file=path)
        return None
    return path


def _download(path: Path) -> str:
    """Return how to get the annotations that belong at ``path``, if they are public."""
    dataset = next((part for part in reversed(path.parts) if part in FILES), "")
    return f", or run `fashion-ntm download {dataset} --data DIR`" if dataset else ""


def optional_folder(data: Path, given: str | None, problems: Problems, key: str) -> Path | None:
    """Return ``option_folder`` of an optional key; None if it is not set."""
    return option_folder(data, given, problems, key) if given else None


def option_folders(
    data: Path, options: BaseModel, problems: Problems, required: str, *optional: str
) -> list[Path | None]:
    """Return the folders of a dataset's options: ``option_folder`` of ``required``, then those that may be unset."""
    first = option_folder(data, getattr(options, required), problems, required)
    return [first, *(optional_folder(data, getattr(options, key), problems, key) for key in optional)]


def read_text(path: Path, problems: Problems) -> str | None:
    """Read a text file (UTF-8, or as its byte order mark says) with line endings converted to newlines.

    A pointer file of a large-file store and a web page are refused as such, and so is a known kind of binary file.
    """
    try:
        data = read_bounded(path)
        if (kind := kind_of_bytes(data)).is_stand_in:
            problems.add("", f"is {kind.name}", kind.advice, file=path)
            return None
        return decode_text(data)
    except FileNotFoundError:
        problems.add("", "no such file", f"this dataset needs it{_download(path)}", file=path)
    except UnicodeDecodeError as error:
        what, fix = f"is {kind.name}, not text", UNPACK if kind.advice == UNPACK else "expected a text file"
        if kind.name == UNKNOWN:
            what, fix = "not UTF-8 text", f"{error.reason}; save the file as UTF-8"
        problems.add(f"byte {error.start}", what, fix, file=path)
    except OSError as error:
        problems.add("", f"cannot be read: {error.strerror or error}", file=path)
    return None


def read_json(path: Path, problems: Problems, kind: type) -> Any | None:
    """Read a JSON file whose value is of ``kind`` (list or dict)."""
    text = read_text(path, problems)
    if text is None:
        return None
    try:
        value = parse_json(text)
    except JsonError as error:
        problems.add(error.place, error.reason, file=path)
        return None
    if not isinstance(value, kind):
        expected = "a JSON list" if kind is list else "a JSON object"
        problems.add("", f"found {type(value).__name__}", f"expected {expected}", file=path)
        return None
    return value


def read_names(path: Path, problems: Problems) -> list[str] | None:
    """Read one name per line, skipping blank lines."""
    text = read_text(path, problems)
    return None if text is None else [name for line in text.split("\n") if (name := line.strip())]


def read_strings(path: Path, problems: Problems) -> list[str] | None:
    """Read a JSON list of non-empty strings."""
    values = read_json(path, problems, list)
    if values is None:
        return None
    for index, value in enumerate(values):
        if not isinstance(value, str) or not value:
            problems.add(f"entry {index}", f"found {brief(value)}", "expected an image id", file=path)
    return [value for value in values if isinstance(value, str) and value]


def read_captions(path: Path, problems: Problems) -> dict[str, str] | None:
    """Read a JSON object image id -> caption. Blank captions are skipped."""
    values = read_json(path, problems, dict)
    if values is None:
        return None
    for image, caption in values.items():
        if not isinstance(caption, str):
            problems.add(f"key {image!r}", f"found {brief(caption)}", "expected the image's caption", file=path)
    return {image: caption for image, caption in values.items() if isinstance(caption, str) and caption.strip()}


def read_records(path: Path, model: type[M], problems: Problems) -> Iterator[tuple[int, M]]:
    """Yield (line number, record) for each line of a JSONL file that fits ``model``; blank lines are skipped."""
    text = read_text(path, problems)
    if (whole := whole_json(text or "")) is not None:
        problems.add("", f"{whole}; one object per line is expected", "in Python: json.dumps of each", file=path)
        return
    # Not splitlines(): it also breaks at U+2028 and similar characters, which JSON strings may contain.
    for number, line in enumerate((text or "").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            yield number, model.model_validate_json(line)
        except ValidationError as error:
            add_invalid(error, model, path, f"line {number}", problems)


def whole_json(text: str) -> str | None:
    """Return "a JSON list" or "a JSON object over several lines" if a line-based file is one of these, else None."""
    start = text.lstrip()[:1]
    if start == "[":
        return "a JSON list"
    first = text.lstrip().partition("\n")[0].strip()
    return "a JSON object over several lines" if first == "{" else None


def add_invalid(error: ValidationError, model: type[BaseModel], path: Path, place: str, problems: Problems) -> None:
    """Report the problems of one record of a file, at ``place`` and key."""
    found = [(p.place.removeprefix("key").strip(), p) for p in problems_of(error, model, str(path))]
    for key, problem in found:
        # A list is "too short" because of its wrong entries, which are reported themselves.
        if not any(other.startswith(key + ".") for other, _ in found):
            problems.add(f"{place}, key {key}" if key else place, problem.what, problem.fix, file=path)
