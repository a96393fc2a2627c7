"""Images in archives: tar shards (WebDataset) and Parquet files, read without unpacking, as folders of images.

A path names the member: ``train-000.tar/0001.jpg``, ``part-0.parquet/0001``. The content key of a member is the one of
its bytes, so the same picture in a folder and in an archive is one row.

Parquet: options name the columns of names and images, which are then part of the path
(``part-0.parquet/[sku,photo]/0001``). Otherwise the image column is "image" or the only one of binary values or of structs with a field "bytes" (as copies of
data sets on the Hugging Face hub have); the name of a row is its value in the first of the columns of ``ID_COLUMNS``,
else the struct's field "path", else the row's number. Images in the order of their files are read once each.
"""

from __future__ import annotations

import os
import re
import tarfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from threading import Lock
from typing import Any
from urllib.parse import quote, unquote

from manifests.errors import nearest

SUFFIXES = (".tar", ".parquet")
ID_COLUMNS = ("id", "image_id", "item_id", "key", "__key__", "filename", "file_name")
_COMPRESSED = (".tar.gz", ".tgz", ".tar.zst", ".tar.xz", ".tar.bz2")
MAX_BYTES = 1 << 30  # of an image file; the largest accepted image has 512 MiB at 16 bits per channel
_COLUMNS = re.compile(r"\[([^\[\],/]*),([^\[\],/]*)\]/")
_GROUPS_KEPT = 4  # row groups in memory; rows in the order of the file need one


class ArchiveError(ValueError):
    """An archive cannot be read: truncated, without an image column, or with a name twice."""


def start_of(path: Path) -> bytes:
    """Return the first bytes of an image, a file or in an archive; b"" if it cannot be read."""
    try:
        for n, parent in enumerate(reversed(path.parents)):
            if n and parent.name.lower().endswith(SUFFIXES) and parent.is_file():
                return read_member(parent, path.relative_to(parent).as_posix())[:8]
        with open(path, "rb") as handle:
            return handle.read(8)
    except (OSError, ArchiveError):
        return b""


def split(file: str, root: Path | None = None) -> tuple[str, str] | None:
    """Return (path of the archive, name of the member), None for a path of a plain file.

    ``root``: the images folder; folders in it may have a name like an archive's.

    >>> split("shards/train-000.tar/a/0001.jpg")
    ('shards/train-000.tar', 'a/0001.jpg')
    """
    parts = file.split("/")
    for n, part in enumerate(parts[:-1]):
        if part.lower().endswith(SUFFIXES) and not (root and (root / "/".join(parts[: n + 1])).is_dir()):
            return "/".join(parts[: n + 1]), "/".join(parts[n + 1 :])
    return None


def compressed(name: str) -> bool:
    """Return whether the file is a compressed tar, whose members cannot be read at random."""
    return name.lower().endswith(_COMPRESSED)


def members(path: Path, names: str | None = None, images: str | None = None) -> list[str]:
    """Return the names of the images in an archive, in its order. Raises ArchiveError.

    ``names``, ``images``: columns of a Parquet file, None for its usual ones.
    """
    if path.suffix.lower() != ".parquet" or not (names or images):
        return list(_archive(path).index)
    columns = names or "", images or ""
    before = ",".join(quote(column, safe="") for column in columns)
    return [f"[{before}]/{name}" for name in _archive(path, columns).index]


def without_columns(file: str) -> str:
    """Return the path of a member without the columns.

    >>> without_columns("part-0.parquet/[sku,]/0001")
    'part-0.parquet/0001'
    """
    inside = split(file)
    return file if inside is None else f"{inside[0]}/{_COLUMNS.sub('', inside[1])}"


def read_member(path: Path, name: str) -> bytes:
    """Return the bytes of one member. Thread-safe. Raises ArchiveError, FileNotFoundError."""
    columns = ("", "")
    if path.suffix.lower() == ".parquet" and (found := _COLUMNS.match(name)):
        columns, name = (unquote(found[1]), unquote(found[2])), name[found.end() :]
    archive = _archive(path, columns)
    if name not in archive.index:
        raise FileNotFoundError(f"no image {name!r} in {path.name}")
    return archive.read(name)


def truncated(path: Path) -> bool:
    """Return whether a tar lacks its end, and so perhaps members of which nothing is known. Raises ArchiveError."""
    archive = _archive(path) if path.suffix.lower() == ".tar" else None
    return isinstance(archive, _Tar) and archive.truncated


class _Tar:
    """``index``: name -> (position, size). A truncated tar has the members before its end."""

    def __init__(self, path: Path):
        self.path, self.index, self.truncated = path, dict[str, tuple[int, int]](), False
        try:
            with tarfile.open(path, "r:") as tar:
                for member in _members(tar):
                    name, first = (n.removeprefix("./") for n in (member.name, member.linkname))
                    linked = self.index.get(first) if member.islnk() else None  # tar stores a second link so
                    if not member.isfile() and linked is None:
                        continue
                    if name in self.index:
                        raise ArchiveError(f"holds {name!r} twice: names must be unique")
                    if member.issparse():
                        raise ArchiveError(f"holds the sparse file {name!r}: write it without tar's option --sparse")
                    self.index[name] = linked or (member.offset_data, member.size)
                self.truncated = path.stat().st_size < tar.offset + tarfile.BLOCKSIZE  # two blocks of zeros end a tar
        except (tarfile.TarError, OSError) as error:
            raise ArchiveError(f"is no tar that can be read: {error}") from None

    def read(self, name: str) -> bytes:
        position, size = self.index[name]
        if size > MAX_BYTES:
            raise ArchiveError(f"{name!r} in {self.path.name} has {size:,} bytes, limit {MAX_BYTES:,}: not an image?")
        with open(self.path, "rb") as handle:
            handle.seek(position)
            data = handle.read(size)
        if len(data) < size:
            raise ArchiveError(f"{self.path.name} is truncated: {len(data)} of {size} bytes of {name!r} are there")
        return data


def _members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Yield the members up to the end of the file, also of a truncated one."""
    while True:
        try:
            member = tar.next()
        except tarfile.ReadError:  # the data of the last member is cut: reading it says so
            return
        if member is None:
            return
        yield member


class _Parquet:
    """``index``: name -> row. The image column is read by row groups, of which the last few are kept.

    ``columns``: those of names and images, "" for the usual ones.
    """

    def __init__(self, path: Path, columns: tuple[str, str]):
        arrow, parquet = _pyarrow()
        self.path, self._lock = path, Lock()
        try:
            self._file = parquet.ParquetFile(path)
            for option, column in zip(("id_column", "image_column"), columns, strict=True):
                if column and column not in self._file.schema_arrow.names:
                    hint = nearest(column, self._file.schema_arrow.names)
                    raise ArchiveError(f"has no column {column!r} (dataset.{option}): {hint}")
            self._column = _image_column(self._file.schema_arrow, arrow, columns[1])
            names = self._names(arrow, columns[0])
        except (arrow.ArrowException, OSError) as error:
            raise ArchiveError(f"is no Parquet file that can be read: {' '.join(str(error).split())[:200]}") from None
        self.index = {name: row for row, name in enumerate(names)}
        if len(self.index) < len(names):
            twice = next(name for row, name in enumerate(names) if self.index[name] != row)
            raise ArchiveError(f"holds {twice!r} twice: names must be unique")
        counts = [self._file.metadata.row_group(n).num_rows for n in range(self._file.metadata.num_row_groups)]
        self._starts = [sum(counts[:n]) for n in range(len(counts) + 1)]
        self._kept: OrderedDict[int, Any] = OrderedDict()

    def _names(self, arrow: Any, chosen: str) -> list[str]:
        schema = self._file.schema_arrow
        for column in [chosen] if chosen else ID_COLUMNS:
            if column in schema.names:
                return [str(value) for value in self._file.read(columns=[column])[column].to_pylist()]
        kind = schema.field(self._column).type
        if arrow.types.is_struct(kind) and kind.get_field_index("path") >= 0:
            paths = self._file.read(columns=[f"{self._column}.path"])[self._column].to_pylist()
            if all(row and row["path"] for row in paths):
                return [row["path"] for row in paths]
        return [str(row) for row in range(self._file.metadata.num_rows)]

    def read(self, name: str) -> bytes:
        row = self.index[name]
        group = next(n for n, start in enumerate(self._starts[1:]) if row < start)
        with self._lock:
            if group not in self._kept:
                table = self._file.read_row_group(group, columns=[self._column], use_threads=False)
                self._kept[group] = table[self._column]
                while len(self._kept) > _GROUPS_KEPT:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(group)
            value = self._kept[group][row - self._starts[group]].as_py()
        data = value.get("bytes") if isinstance(value, dict) else value
        if data is None:
            raise ArchiveError(
                f"{self.path.name} has no bytes for {name!r}: a copy with links to files, not with images"
            )
        return bytes(data)


def _image_column(schema: Any, arrow: Any, chosen: str) -> str:
    def holds_bytes(kind: Any) -> bool:
        if arrow.types.is_struct(kind):
            return kind.get_field_index("bytes") >= 0
        return bool(arrow.types.is_binary(kind) or arrow.types.is_large_binary(kind))

    found = [field.name for field in schema if holds_bytes(field.type)]
    if chosen:
        if chosen not in found:
            kind = schema.field(chosen).type
            raise ArchiveError(f"has {kind} in column {chosen!r}, not images: binary values or structs with 'bytes'")
        return chosen
    if "image" in found or len(found) == 1:
        return "image" if "image" in found else found[0]
    what = f"several image columns ({', '.join(found)}): set dataset.image_column" if found else "no image column"
    raise ArchiveError(
        f"has {what}; expected binary values or structs with 'bytes'; columns: {', '.join(schema.names)}"
    )


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ArchiveError("is read by pyarrow, which is not installed: pip install 'fashion-ntm[parquet]'") from None
    return pyarrow, pyarrow.parquet


_open: dict[tuple[int, str, tuple[str, str]], tuple[tuple[int, int], _Tar | _Parquet]] = {}
_opening = Lock()
if hasattr(os, "register_at_fork"):  # a decoding process may be forked while a thread holds the lock
    os.register_at_fork(before=_opening.acquire, after_in_parent=_opening.release, after_in_child=_opening.release)


def _archive(path: Path, columns: tuple[str, str] = ("", "")) -> _Tar | _Parquet:
    """Return the archive with its index, opened once per process (a file handle is not shared with a forked one)."""
    stat = path.stat()
    stamp, key = (stat.st_size, stat.st_mtime_ns), (os.getpid(), str(path), columns)
    with _opening:
        known = _open.get(key)
        if known is None or known[0] != stamp:
            parquet = path.suffix.lower() == ".parquet"
            made: _Tar | _Parquet = _Parquet(path, columns) if parquet else _Tar(path)
            _open[key] = known = stamp, made
        return known[1]
