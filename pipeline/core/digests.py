"""Content keys of image files, remembered by path, size, times and inode so that a second run reads no image."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from manifests.identity import KEY_BYTES, image_key
from pipeline.core.image_files import ReadError, locate

NAME = "image-digests.tsv"
_HEAD = "# fashion-ntm image digests 2 of "
_RACY_NS = 2_000_000_000  # a file this fresh may change again within its time stamp's resolution: do not remember it
_AT_ONCE = 64


class DigestCache:
    """``file -> (size, mtime_ns, ctime_ns, inode, key)`` in a text file beside a dataset's stores; shared by all its extractors.

    It only saves time: a missing, torn or foreign file is the same as an empty one, and so is one of another images
    folder. The change time cannot be set back, so other bytes under the old size and modification time (an archive that
    was unpacked, a copy that keeps times) are seen. The bytes are checked against the key again when the image is decoded, so a wrong entry never makes a wrong
    row.
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
        for line in lines[:-1]:  # what follows the last newline is torn, or nothing
            fields = line.split("\t", 5)
            try:
                stamp, key = tuple(map(int, fields[:4])), bytes.fromhex(fields[4])
                if len(key) == KEY_BYTES:
                    self._known[fields[5]] = stamp, key
            except (ValueError, IndexError):
                continue

    def keys(self, files: Iterable[str], workers: int) -> Iterator[tuple[str, bytes | ReadError]]:
        """(file, content key or the reason why it has none), in the order given; hashed by ``workers`` threads."""
        files = list(files)
        if workers <= 1:
            yield from ((file, self._key(file)) for file in files)
            return
        with ThreadPoolExecutor(workers, "hash") as pool:
            step = _AT_ONCE * workers  # bounded: few futures, whatever the catalogue's size
            for start in range(0, len(files), step):
                part = files[start : start + step]
                yield from zip(part, pool.map(self._key, part), strict=True)

    def _key(self, file: str) -> bytes | ReadError:
        try:
            path = locate(self.root, file)
            before = path.stat()
            stamp = before.st_size, before.st_mtime_ns, before.st_ctime_ns, before.st_ino
            known = self._known.get(file)
            if known is not None and known[0] == stamp:
                return known[1]
            key = image_key(path.read_bytes())
        except ReadError as error:
            return error
        except OSError as error:
            return ReadError(f"cannot be read: {error.strerror or error}")
        if time.time_ns() - before.st_mtime_ns > _RACY_NS and "\t" not in file and "\n" not in file:
            self._known[file] = stamp, key
            self._changed = True
        return key

    def forget(self, files: Iterable[str]) -> None:
        """Read these files again next time."""
        for file in files:
            self._changed |= self._known.pop(file, None) is not None

    def save(self) -> None:
        """Replace the file at once, if anything was learnt. A folder that cannot be written is no error."""
        if self.path is None or not self._changed:
            return
        temporary = self.path.with_name(f"{self.path.name}.{os.getpid()}.tmp")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(temporary, "w", encoding="utf-8", newline="\n") as handle:
                handle.write(f"{_HEAD}{self.root}\n")
                for file, (stamp, key) in sorted(self._known.items()):
                    handle.write("\t".join([*map(str, stamp), key.hex(), file]) + "\n")
            temporary.replace(self.path)
            self._changed = False
        except (OSError, ValueError):  # ValueError: a file name that is not valid text
            temporary.unlink(missing_ok=True)
