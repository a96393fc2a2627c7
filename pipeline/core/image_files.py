"""Bytes of image files and of images in archives, their content keys, and errors of unreadable items.

Content keys are cached by path, size, times and inode, so that a second run reads no images.
"""

from __future__ import annotations

import stat
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from cache.files import replace_atomically
from cache.stat_cache import stamp_of
from manifests.archives import MAX_BYTES, ArchiveError, read_member, split
from manifests.errors import FashionNTMError
from manifests.identity import KEY_BYTES, image_key
from manifests.schema import Image

DIGESTS = "image-digests.tsv"  # next to the stores of a dataset
_HEAD = "# fashion-ntm image digests 2 of "
_RACY_NS = 2_000_000_000  # not cached: a file this new may change again within the resolution of its timestamp
_AT_ONCE = 64


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


def image_keys(
    images: Iterable[Image], root: Path, digests: Path | None, workers: int = 2, remember: bool = True
) -> dict[str, bytes | ReadError]:
    """Return image id -> content key, or read error, of the images that have a file in the folder ``root``.

    ``digests``: the file of a ``DigestCache``, updated if ``remember``.
    """
    cache, files = DigestCache(digests, root.resolve()), {image.id: image.file for image in images if image.file}
    found = dict(cache.keys(dict.fromkeys(files.values()), workers))
    if remember:
        cache.save()
    return {image: found[file] for image, file in files.items()}


class DigestCache:
    """Map ``file -> (size, mtime_ns, ctime_ns, inode, key)`` in a text file next to a dataset's stores.

    All extractors of the dataset share it. It only saves time: a missing, damaged or foreign file, or one of another
    images folder, counts as empty. The change time cannot be set back, so changed bytes with the old size and
    modification time (an unpacked archive, a copy that preserves times) are detected. The bytes are checked against
    the key again when the image is decoded, so a wrong entry never produces a wrong row.
    """

    def __init__(self, path: Path | None, root: Path):
        self.path, self.root = path, root
        self._known: dict[str, tuple[tuple[int, ...], bytes]] = {}
        self._changed = False
        if path is not None:
            self._read(path)

    def _read(self, path: Path) -> None:
        try:
            head, *lines = path.read_text(encoding="utf-8").split("\n")
        except (OSError, UnicodeDecodeError):
            return
        if head != f"{_HEAD}{self.root}":
            return
        for line in lines[:-1]:  # text after the last newline is incomplete or empty
            fields = line.split("\t", 5)
            try:
                stamp, key = tuple(map(int, fields[:4])), bytes.fromhex(fields[4])
                if len(key) == KEY_BYTES:
                    self._known[fields[5]] = stamp, key
            except (ValueError, IndexError):
                continue

    def keys(self, files: Iterable[str], workers: int) -> Iterator[tuple[str, bytes | ReadError]]:
        """Yield (file, content key or read error) in the given order; ``workers`` threads hash the files."""
        files = list(files)
        if workers <= 1:
            yield from ((file, self._key(file)) for file in files)
            return
        with ThreadPoolExecutor(workers, "hash") as pool:
            step = _AT_ONCE * workers  # bounds the number of futures regardless of the catalog's size
            for start in range(0, len(files), step):
                part = files[start : start + step]
                yield from zip(part, pool.map(self._key, part), strict=True)

    def _key(self, file: str) -> bytes | ReadError:
        try:
            path = locate(self.root, file)
            before = path.stat()
            stamp = tuple(stamp_of(before))
            known = self._known.get(file)
            if known is not None and known[0] == stamp:
                return known[1]
            key = image_key(read_bytes(self.root, file))
        except ReadError as error:
            return error
        except OSError as error:
            return ReadError(f"cannot be read: {error.strerror or error}")
        if time.time_ns() - before.st_mtime_ns > _RACY_NS and "\t" not in file and "\n" not in file:
            self._known[file] = stamp, key
            self._changed = True
        return key

    def forget(self, files: Iterable[str]) -> None:
        """Drop the entries of ``files``, so that they are read again."""
        for file in files:
            self._changed |= self._known.pop(file, None) is not None

    def save(self) -> None:
        """Replace the file atomically if entries changed. An unwritable folder is not an error."""
        if self.path is None or not self._changed:
            return
        lines = [f"{_HEAD}{self.root}"]
        lines += ["\t".join([*map(str, stamp), key.hex(), file]) for file, (stamp, key) in sorted(self._known.items())]
        with suppress(OSError, ValueError):  # ValueError: file name that is not valid text
            self.path.parent.mkdir(parents=True, exist_ok=True)
            replace_atomically(self.path, "".join(f"{line}\n" for line in lines).encode(), durable=False)
            self._changed = False
