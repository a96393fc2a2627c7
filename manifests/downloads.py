"""Download the public annotation files and verify their checksums, or copy them from a folder for use offline.
Images are never downloaded: their owners publish them elsewhere.

    download("mt_fashioniq", Path("data"))                         from the public repositories
    download("shoes", Path("data"), Path("/media/disk/data"))      from a folder (or a file:// address, or a mirror's)

Files are written to ``<to>/<dataset>/...``, the default folders of the datasets' options. Each file is verified and
then moved into place atomically; valid existing files are skipped, so a second call resumes.
"""

from __future__ import annotations

import http.client
import os
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from manifests._download_files import FILES, RemoteFile
from manifests.errors import FashionNTMError, ManifestError, Problem, nearest
from manifests.identity import file_digest

TIMEOUT = 30.0  # seconds without a response
LARGEST = 64 * 1024 * 1024  # bytes; the largest file is 4 MB, so a larger response is wrong


class DownloadError(FashionNTMError):
    """Files that could not be fetched or do not match. Files fetched before are kept."""

    def __init__(self, problems: Sequence[Problem]):
        self.problems = tuple(problems)
        super().__init__("\n".join(map(str, problems)))


class _NoConnectionError(Exception):
    """The server is unreachable, so the remaining files cannot be fetched either."""


@dataclass(frozen=True)
class Download:
    """Result of a download: files fetched, files skipped, and notes on single files."""

    fetched: tuple[Path, ...]
    skipped: tuple[Path, ...]  # already present and valid
    notes: tuple[str, ...]


def download(
    name: str,
    to: Path,
    source: str | Path | None = None,
    *,
    files: Mapping[str, Sequence[RemoteFile]] = FILES,
    progress: Callable[[str], None] | None = None,
) -> Download:
    """Put the files of dataset ``name`` (or "all") below ``to``.

    ``source``: None for the public repositories; a folder or ``file://`` address with the files in the layout of
    ``to``, of one dataset, or of the public repository; or an ``http(s)://`` address with the layout of ``to``.
    ``progress`` receives one line per file.

    Raise ManifestError for an unknown name; DownloadError naming every file that is missing, does not match its
    checksum, or exists with other content (it is not changed), and if there is no connection.
    """
    if name != "all" and name not in files:
        raise ManifestError([Problem("download", "name", f"unknown dataset {name!r}", nearest(name, [*files, "all"]))])
    wanted = [file for key in files for file in files[key] if name in ("all", key)]
    folder, base = _source(source)
    fetched: list[Path] = []
    skipped: list[Path] = []
    notes: list[str] = []
    problems: list[Problem] = []
    for file in wanted:
        target = to / file.path
        if target.exists():
            wrong = verify(file, target)
            if wrong:
                fix = "move it away, or choose another folder; it was not changed"
                problems.append(Problem(str(target), "", f"is there, but {wrong}", fix))
                continue
            skipped.append(target)
        else:
            url = file.url if base is None else f"{base}/{urllib.parse.quote(file.path)}"
            try:
                problem = _fetch(file, url, target) if folder is None else _copy(file, folder, target)
            except _NoConnectionError as error:
                problems.append(_offline(url, error, file))
                break  # the other files would wait for the same timeout
            if problem:
                problems.append(problem)
                continue
            fetched.append(target)
        if progress:
            progress(f"{'kept' if skipped and skipped[-1] == target else 'fetched'} {file.path}")
        digest = file_digest(target)
        notes += [f"{file.path}: {note}" for known, note in file.notes if known == digest]
    if problems:
        raise DownloadError(problems)
    return Download(tuple(fetched), tuple(skipped), tuple(notes))


def verify(file: RemoteFile, path: Path) -> str:
    """Return "" if the file at ``path`` is valid, else the reason that it is not."""
    try:
        digest = file_digest(path)
        if digest in file.sha256:
            return ""
        if file.characters is not None and len(path.read_text(encoding="utf-8")) == file.characters:
            return ""
    except (OSError, UnicodeDecodeError) as error:
        return f"cannot be read: {error}"
    expected = [f"sha256 {d[:12]}" for d in file.sha256]
    if file.characters is not None:
        expected.append(f"a text of {file.characters:,} characters")
    return f"has sha256 {digest[:12]} and {path.stat().st_size:,} bytes; expected {' or '.join(expected)}"


def _source(source: str | Path | None) -> tuple[Path | None, str | None]:
    """Return (folder, None), (None, address), or (None, None) for the public repositories."""
    if source is None:
        return None, None
    text = str(source)
    scheme = urllib.parse.urlsplit(text).scheme if isinstance(source, str) else ""
    if scheme in ("http", "https"):
        return None, text.rstrip("/")
    if scheme == "file":
        text = urllib.request.url2pathname(urllib.parse.urlsplit(text).path)
    elif "://" in text:
        fix = "give a folder, or a file://, http:// or https:// address"
        raise DownloadError([Problem(text, "", f"cannot fetch from {scheme}://", fix)])
    if not Path(text).is_dir():
        raise DownloadError([Problem(text, "", "no such folder", "give the folder that holds the files")])
    return Path(text), None


def _copy(file: RemoteFile, folder: Path, target: Path) -> Problem | None:
    within = file.path.partition("/")[2]
    candidates = [folder / file.path, folder / within, folder / file.upstream]
    found = next((path for path in candidates if path.is_file()), None)
    if found is None:
        return Problem(str(folder), "", f"holds no {file.path}", f"nor {within}, nor {file.upstream}")
    try:
        return _place(file, found.read_bytes(), target, str(found))
    except OSError as error:
        return Problem(str(found), "", f"cannot be copied: {error}")


def _fetch(file: RemoteFile, url: str, target: Path) -> Problem | None:
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as answer:
            data = answer.read(LARGEST + 1)
    except urllib.error.HTTPError as error:
        return Problem(url, "", f"the server answered {error.code} {error.reason}", "the file may have moved")
    except (urllib.error.URLError, OSError, http.client.HTTPException) as error:
        raise _NoConnectionError(getattr(error, "reason", error)) from error
    if len(data) > LARGEST:
        return Problem(url, "", f"is larger than {LARGEST:,} bytes", "this is not the file that was asked for")
    try:
        return _place(file, data, target, url)
    except OSError as error:
        return Problem(str(target), "", f"cannot be written: {error}")


def _offline(url: str, error: Exception, file: RemoteFile) -> Problem:
    host = urllib.parse.urlsplit(url).netloc
    fix = (
        f"run the same command again where {host} can be reached: what has arrived is kept; or bring the files on a "
        f"disk and give their folder as the source (this one is public at {file.url})"
    )
    return Problem(url, "", f"no connection to {host}: {error}", fix)


def _place(file: RemoteFile, data: bytes, target: Path, origin: str) -> Problem | None:
    """Verify the bytes in a temporary file next to ``target``, then rename it: a killed run leaves no partial file."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with open(part, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        if wrong := verify(file, part):
            return Problem(origin, "", wrong, "it was not kept: the download was cut short, or this is another version")
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)
    return None
