"""Recognize the kind of a file by its first bytes, with advice if another kind was expected."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

NUMPY, SAFETENSORS, EMPTY, UNKNOWN = "a NumPy array", "a safetensors file", "an empty file", "a file of unknown kind"

LONGEST_HEADER = 100_000_000  # bytes of the header of a safetensors file, by its format


class Kind(NamedTuple):
    """Kind of file. ``name``: phrase that follows "is"; ``advice``: the next step, or ""."""

    name: str
    advice: str = ""
    is_stand_in: bool = False  # a text in place of the file


UNPACK = "unpack it first"
_TAKE_OUT = "take the array out and save it with numpy.save"
_KINDS = (
    (b"\x93NUMPY", Kind(NUMPY, "name it .npy")),
    (b"PK\x03\x04", Kind("a zip archive (an .npz, or saved by torch.save)", _TAKE_OUT)),
    (b"\x89HDF\r\n\x1a\n", Kind("an HDF5 file", _TAKE_OUT)),
    (b"MATLAB 5.0", Kind("a MATLAB file", _TAKE_OUT)),
    (b"PAR1", Kind("a Parquet file", _TAKE_OUT)),
    (b"ARROW1", Kind("an Arrow file", _TAKE_OUT)),
    (b"\x1f\x8b", Kind("a gzip archive", UNPACK)),
    (b"BZh", Kind("a bzip2 archive", UNPACK)),
    (b"\xfd7zXZ\x00", Kind("an xz archive", UNPACK)),
    (b"\x28\xb5\x2f\xfd", Kind("a zstd archive", UNPACK)),
    (b"7z\xbc\xaf\x27\x1c", Kind("a 7z archive", UNPACK)),
    (b"Rar!", Kind("a RAR archive", UNPACK)),
    (b"\xff\xd8\xff", Kind("a JPEG image")),
    (b"\x89PNG", Kind("a PNG image")),
)
_PICKLE = Kind(
    "a Python pickle", "pickles can run code, so they are refused; load it where you trust it, and numpy.save"
)


def kind_of(file: Path) -> Kind:
    """Return the kind of a file by its first bytes. Raise OSError."""
    with open(file, "rb") as handle:
        return kind_of_bytes(handle.read(512))


def kind_of_bytes(data: bytes) -> Kind:
    """Return the kind of a file that begins with ``data``."""
    start = data[:512]
    if not start:
        return Kind(EMPTY, "copy or export it again")
    if start.startswith(b"version https://git-lfs.github.com/spec/"):
        size = re.search(rb"\nsize (\d+)", start)
        of = f" for {int(size[1]):,} bytes" if size else ""
        return Kind(f"a pointer file of Git LFS{of}, not the data", "run `git lfs pull` where it was cloned", True)
    if b"/annex/objects/" in start[:200]:
        return Kind("a pointer file of git-annex, not the data", "run `git annex get` where it was cloned", True)
    for magic, kind in _KINDS:
        if start.startswith(magic):
            return kind
    if start[257:262] == b"ustar":
        return Kind("a tar archive", UNPACK)
    if start[:1] == b"\x80" and start[1:2] in (b"\2", b"\3", b"\4", b"\5"):
        return _PICKLE
    if start.lstrip()[:9].lower().startswith((b"<html", b"<!doctype")):
        return Kind("a web page", "the download gave a page of the server: fetch it again", True)
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < LONGEST_HEADER:
        return Kind(SAFETENSORS, "name it .safetensors")
    return Kind(UNKNOWN, f"it begins with {start[:8]!r}")
