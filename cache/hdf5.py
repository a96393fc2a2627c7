"""HDF5 files with bytes determined by their content, and with contiguous arrays.

A dataset of fixed shape, allocated at creation, without fill values, filters or times, is laid out chunk after
chunk without an index. The library therefore only creates the file's structure, in memory. Structure and rows are
written by plain writes (a full disk is a plain OSError, and nothing stays open in the library), and rows are read as
np.memmap. If an array is not contiguous (a user repacked the shard), h5py reads it.

The format is pinned to that of HDF5 1.10, with later libraries too; today it is what ``libver="latest"`` gives.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from cache.files import write_all

CHUNK_ROWS = 256
_LIBVER = ("v110", "v110")
_BLOCK = 1 << 18  # bytes per comparison; fits in the processor's cache
_PAGE = 4096  # alignment of arrays (see cache.region); the small headers need none


def chunk_rows(rows: int) -> int:
    """Return the rows per chunk, at most 256, such that the last chunk is nearly full: padding is below 0.4%."""
    return -(-rows // -(-rows // CHUNK_ROWS))


class FileImage:
    """HDF5 file before it is written: one dataset per array [n, ...], in order, and root attributes.

    ``offsets``: byte offset of each array in the file; ``size``: bytes of the file. Raises OSError if this HDF5
    library does not store the arrays contiguously. Text attributes are fixed-length UTF-8.
    """

    def __init__(self, arrays: Mapping[str, np.ndarray], attributes: Mapping[str, str | int]):
        arrays = {name: np.ascontiguousarray(array, array.dtype.newbyteorder("<")) for name, array in arrays.items()}
        draft, least = _Draft(), min([512, *(array.nbytes for array in arrays.values() if array.size)])
        with h5py.File(draft, "w", libver=_LIBVER, alignment_threshold=least, alignment_interval=_PAGE) as file:
            for name, array in arrays.items():
                _create_dataset(file, name, array)
            for name, value in attributes.items():
                file.attrs[name] = np.bytes_(value.encode()) if isinstance(value, str) else value
            offsets = {name: contiguous_offset(file[name]) for name in arrays}
        self.offsets = {name: offset for name, offset in offsets.items() if offset is not None}
        scattered = [name for name in arrays if name not in self.offsets]
        if scattered:
            raise OSError(f"HDF5 {h5py.version.hdf5_version} does not lay out {', '.join(scattered)} in one piece")
        self.size = draft.size
        self._parts: list[memoryview] = []  # the file, from its first byte to its last
        end = 0
        for name in sorted((n for n in arrays if arrays[n].size), key=self.offsets.__getitem__):
            self._parts += [draft.part(end, self.offsets[name]), memoryview(arrays[name].reshape(-1).view(np.uint8))]
            end = self.offsets[name] + arrays[name].nbytes
        self._parts.append(draft.part(end, draft.size))

    def write(self, path: Path) -> None:
        """Create ``path`` without syncing it. Raise OSError."""
        with open(path, "xb", buffering=0) as handle:
            offset = 0
            for part in self._parts:
                write_all(handle.fileno(), part, offset)
                offset += len(part)

    def sha256(self) -> str:
        """Return the SHA-256 (64 hex digits) of the file that ``write`` creates, computed from memory."""
        digest = hashlib.sha256()
        for part in self._parts:
            digest.update(part)
        return digest.hexdigest()

    def same_as(self, path: Path) -> bool:
        """Return whether the file at ``path``, opened again and read in full, equals this one."""
        block = np.empty(_BLOCK, dtype=np.uint8)
        with open(path, "rb", buffering=0) as handle:
            for part in self._parts:
                wanted = np.frombuffer(part, dtype=np.uint8)
                for start in range(0, len(wanted), _BLOCK):
                    piece = wanted[start : start + _BLOCK]
                    if handle.readinto(memoryview(block[: len(piece)])) != len(piece) or not _equal(block, piece):
                        return False
            return not handle.read(1)


def _equal(block: np.ndarray, piece: np.ndarray) -> bool:
    """Return whether uint8 ``block`` [m] starts with ``piece`` [n]; eight bytes at once are 4x faster."""
    eights = len(piece) & ~7
    if piece.ctypes.data % 8:
        eights = 0
    return np.array_equal(block[:eights].view(np.uint64), piece[:eights].view(np.uint64)) and np.array_equal(
        block[eights : len(piece)], piece[eights:]
    )


def write_hdf5(path: Path, arrays: Mapping[str, np.ndarray], attributes: Mapping[str, str | int]) -> dict[str, int]:
    """Create ``path`` as a ``FileImage``, without syncing it; return the byte offset of each array. Raise OSError."""
    image = FileImage(arrays, attributes)
    image.write(path)
    return image.offsets


class _Draft(io.RawIOBase):
    """In-memory file that stores only written bytes: HDF5 writes the structure and leaves the rows unwritten."""

    def __init__(self) -> None:
        self.written: list[tuple[int, bytes]] = []  # (offset, bytes), later ones override
        self.size = self._at = 0

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self.size}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def write(self, data: Any) -> int:
        self.written.append((self._at, bytes(data)))
        self._at += len(self.written[-1][1])
        self.size = max(self.size, self._at)
        return len(self.written[-1][1])

    def truncate(self, size: int | None = None) -> int:
        self.size = self._at if size is None else size
        return self.size

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        view[:] = self.part(self._at, self._at + len(view))
        self._at += len(view)
        return len(view)

    def part(self, first: int, last: int) -> memoryview:
        """Return bytes ``first`` to ``last`` of the file; unwritten bytes are zero."""
        found = bytearray(max(0, last - first))
        for offset, data in self.written:
            start, stop = max(offset, first), min(offset + len(data), last)
            if start < stop:
                found[start - first : stop - first] = data[start - offset : stop - offset]
        return memoryview(found)


def _create_dataset(file: h5py.File, name: str, array: np.ndarray) -> None:
    plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    if array.size:
        plan.set_chunk((chunk_rows(len(array)), *array.shape[1:]))
    plan.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    plan.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    plan.set_obj_track_times(False)
    space = h5py.h5s.create_simple(array.shape)
    h5py.h5d.create(file.id, name.encode(), h5py.h5t.py_create(array.dtype), space, plan)


def contiguous_offset(dataset: h5py.Dataset) -> int | None:
    """Return the byte offset of a dataset with contiguous rows and no filters, else None."""
    if dataset.id.get_create_plist().get_nfilters() or dataset.external or dataset.is_virtual:
        return None
    chunks, shape = dataset.chunks, dataset.shape  # each access is a library call
    if chunks is None or not dataset.size:
        offset = dataset.id.get_offset()
        return offset if offset is not None or dataset.size else 0
    if chunks[1:] != shape[1:]:
        return None
    rows, step = chunks[0], int(np.prod(chunks)) * dataset.dtype.itemsize
    places: dict[int, int] = {}  # number of the chunk -> byte offset
    dataset.id.chunk_iter(lambda chunk: places.__setitem__(chunk.chunk_offset[0] // rows, chunk.byte_offset))
    in_one_piece = {number: places.get(0, 0) + number * step for number in range(-(-shape[0] // rows))}
    return places[0] if places == in_one_piece else None


@dataclass(frozen=True)
class Header:
    """Header of an HDF5 file: root attributes, and shape, dtype and offset of every dataset."""

    attributes: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, str]
    offsets: dict[str, int | None]


class OutsideDataError(OSError):
    """The file's data are in other files, so its digest does not cover them."""


def require_own_data(file: h5py.File) -> None:
    """Raise OutsideDataError unless every item of the root is a dataset with its rows in the file itself.

    Only hard links are followed, and no row is read.
    """
    for name in file:
        link = file.get(name, getlink=True)
        if isinstance(link, h5py.ExternalLink):
            raise OutsideDataError(f"'{name}' is an external link to another file, which is not read")
        if not isinstance(link, h5py.HardLink):
            raise OutsideDataError(f"'{name}' is a soft link, which is not followed")
        item = file[name]
        if not isinstance(item, h5py.Dataset):
            continue
        plan = item.id.get_create_plist()
        if plan.get_external_count():
            raise OutsideDataError(f"dataset '{name}' has external storage in another file, which is not read")
        if plan.get_layout() == h5py.h5d.VIRTUAL:
            raise OutsideDataError(f"dataset '{name}' is a virtual dataset of other data, which are not read")


@contextmanager
def open_hdf5(path: Path) -> Iterator[h5py.File]:
    """Open for reading, without HDF5's file locks (shards never change, and the folder may be read-only).

    All errors that h5py raises for damaged files become OSError. Raise OutsideDataError for a file with data in other
    files.
    """
    try:
        with h5py.File(path, "r", locking=False) as file:
            require_own_data(file)
            yield file
    except OSError:
        raise
    except Exception as error:
        raise OSError(f"no readable HDF5 file: {error}") from error


def read_header(path: Path) -> Header:
    """Read the header, no rows. Raise OSError if the file is not a readable HDF5 file."""
    with open_hdf5(path) as file:
        found = {name: item for name, item in file.items() if isinstance(item, h5py.Dataset)}
        return Header(
            {name: _plain(value) for name, value in file.attrs.items()},
            {name: item.shape for name, item in found.items()},
            {name: item.dtype.name for name, item in found.items()},
            {name: contiguous_offset(item) for name, item in found.items()},
        )


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return value.item() if isinstance(value, np.generic) else value
