"""Paths and bytes of image files and of images in archives, and errors of unreadable items."""

from __future__ import annotations

import stat
from pathlib import Path

from manifests.archives import MAX_BYTES, ArchiveError, read_member, split
from manifests.errors import FashionNTMError


class ItemError(FashionNTMError):
    """One item cannot be processed. It is recorded as failed with this stage and reason, and the job continues."""

    stage = "read"

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason


class ReadError(ItemError):
    """The file is missing, unreadable or outside the images folder."""


def is_transient(stage: str, reason: str) -> bool:
    """Return whether a recorded failure is an I/O error, which a later run may not meet again."""
    return stage == ReadError.stage and reason.startswith("cannot be ")


def locate(root: Path, file: str) -> Path:
    """Return the regular file ``root / file``, whose real path must be inside ``root`` (already resolved).

    For an image in an archive it is the archive. Raises ReadError if the file is outside ``root`` (by ``..``, an absolute path or a link), missing or unreadable.
    """
    try:
        inside = split(file, root)
        path = (root / (inside[0] if inside else file)).resolve(strict=True)
        mode = path.stat().st_mode
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: a loop of links; ValueError: a NUL byte
        what = "no such file" if isinstance(error, FileNotFoundError) else f"cannot be opened: {error}"
        raise ReadError(f"{what}: {file!r} below {root}") from None
    if not path.is_relative_to(root):
        raise ReadError(f"{file!r} leads outside the images folder {root}, to {path}")
    if not stat.S_ISREG(mode):
        raise ReadError(f"not a regular file: {file!r} below {root}")
    return path


def read_bytes(root: Path, file: str) -> bytes:
    """Return the bytes of the image ``root / file``, a file or a member of an archive. Raises ReadError."""
    path, inside = locate(root, file), split(file, root)
    try:
        if inside is not None:
            return read_member(root / inside[0], inside[1])  # a link's own name says which archive it is
        if (size := path.stat().st_size) > MAX_BYTES:
            raise ReadError(f"the file has {size:,} bytes, limit {MAX_BYTES:,}: not an image?")
        return path.read_bytes()
    except OSError as error:
        raise ReadError(f"cannot be read: {error.strerror or error}") from None
    except ArchiveError as error:
        raise ReadError(str(error)) from None
