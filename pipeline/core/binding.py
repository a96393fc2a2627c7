"""Records the content that stage 1 read for a spec, and checks the spec's data and model files against that record.

A binding maps each image id of a dataset to its content key (16 bytes). It belongs to one extraction of one dataset, not
to a dataset's name: two folders under one name have two bindings. Stage 2 reads rows through it alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from cache.files import replace_atomically
from cache.hdf5 import write_hdf5
from cache.stat_cache import sha256_of
from manifests.errors import IncompleteError
from manifests.identity import KEY_BYTES, digest, stack_keys
from manifests.schema import Dataset, RunSpec
from pipeline.core.digests import DigestCache

_ENCODING = ("utf-8", "surrogatepass")  # file names of no valid encoding reach Python as lone surrogates
_SHOWN = 3


class StaleError(IncompleteError):
    """Something recorded is of other data than the spec names now. The message says which, and the next command."""


def declared_digest(dataset: Dataset) -> str:
    """SHA-256 (64 hex digits) of what the dataset says of its images: ids, files, captions, attributes."""
    return digest(
        sorted(
            [image.id, image.file, image.caption, sorted(dataset.attributes.get(image.id, {}).items())]
            for image in dataset.images.values()
        )
    )


def save_binding(folder: Path, keys: Mapping[str, bytes]) -> str:
    """Write ``keys`` (image id -> content key) below ``folder`` unless it is there; return its name, a digest.

    Datasets: "keys" uint8 [n, 16]; "id_bytes" uint8, all ids one after another; "id_ends" int64 [n].
    """
    entries = sorted((image.encode(*_ENCODING), key) for image, key in keys.items())
    name = _name(entries)
    path = folder / f"{name}.h5"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        arrays = {
            "keys": stack_keys(key for _, key in entries),
            "id_bytes": np.frombuffer(b"".join(image for image, _ in entries), dtype=np.uint8),
            "id_ends": np.cumsum([len(image) for image, _ in entries], dtype=np.int64),
        }
        temporary = path.with_suffix(".tmp")
        write_hdf5(temporary, arrays, {"format": "fashion-ntm binding 1"})
        temporary.replace(path)
    return name


def load_binding(folder: Path, name: str) -> dict[str, bytes]:
    """Read a binding: image id -> content key. Raises StaleError when it is missing or its content has another digest."""
    path = folder / f"{name}.h5"
    try:
        with h5py.File(path, "r") as file:
            keys, text, ends = (file[n][()] for n in ("keys", "id_bytes", "id_ends"))
        blob, joined, stops = keys.tobytes(), text.tobytes(), ends.tolist()
        starts = [0, *stops][: len(stops)]
        entries = [
            (joined[a:b], blob[n * KEY_BYTES : (n + 1) * KEY_BYTES])
            for n, (a, b) in enumerate(zip(starts, stops, strict=True))
        ]
    except (OSError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise StaleError(f"{path} is missing or damaged ({error}): run `extract` again, rows are kept") from None
    if _name(entries) != name:
        raise StaleError(f"{path} has another content than its name says: run `extract` again, rows are kept")
    return {image.decode(*_ENCODING): key for image, key in entries}


def _name(entries: list[tuple[bytes, bytes]]) -> str:
    hasher = hashlib.sha256()
    for image, key in entries:
        hasher.update(len(image).to_bytes(4, "little") + image + key)
    return hasher.hexdigest()[:16]


@dataclass(frozen=True)
class ImageChanges:
    """Images whose file has another content than its recorded key; ``checked`` is False without an images folder."""

    checked: bool
    changed: tuple[str, ...] = ()
    new: tuple[str, ...] = ()  # readable now, and not when the features were extracted

    def text(self) -> str:
        parts = [
            f"{len(ids):,} images {what} ({', '.join(repr(i) for i in ids[:_SHOWN])}{', ...' if len(ids) > _SHOWN else ''})"
            for ids, what in ((self.changed, "have another content"), (self.new, "became readable"))
            if ids
        ]
        return " and ".join(parts)


def image_changes(dataset: Dataset, keys: Mapping[str, bytes], digests: Path) -> ImageChanges:
    """Compare the images on disk with their recorded keys. Digests are remembered by stat in ``digests``.

    A file that cannot be read now keeps its recorded key. Without an images folder nothing can be compared.
    """
    if dataset.images_root is None or not dataset.images_root.is_dir():
        return ImageChanges(False)
    cache = DigestCache(digests, dataset.images_root.resolve())
    files = dict.fromkeys(image.file for image in dataset.images.values() if image.file)
    found = dict(cache.keys(files, workers=2))
    cache.save()
    changed, new = [], []
    for image in dataset.images.values():
        key = found.get(image.file) if image.file else None
        if isinstance(key, bytes) and keys.get(image.id) != key:
            (changed if image.id in keys else new).append(image.id)
    return ImageChanges(True, tuple(changed), tuple(new))


def source_files(spec: RunSpec) -> dict[str, str]:
    """SHA-256 of every local file that the extractor's and composer's options name, folders with all files below.

    Keys are ``option:path below it``: a model folder that moved has the same ones.
    """
    found: dict[str, str] = {}
    for option, path in _sources(spec):
        for file in [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file()):
            name = "" if file == path else file.relative_to(path).as_posix()
            found[f"{option}:{name}"] = sha256_of(file)
    return found


def _sources(spec: RunSpec) -> list[tuple[str, Path]]:
    parts: list[tuple[str, dict[str, Any]]] = [("extractor", spec.extractor.options)]
    parts += [("composer", spec.composer.options)] if spec.composer else []
    named = [(f"{part}.{key}", value) for part, options in parts for key, value in options.items()]
    paths = [(option, Path(value).expanduser()) for option, value in named if isinstance(value, str) and value]
    return [(option, path) for option, path in paths if path.exists()]


class SourceRecord:
    """The source files of an extraction with their digests, and the stat by which an unchanged file is known."""

    def __init__(self, files: Mapping[str, Any]):
        self.files = dict(files)

    @classmethod
    def of(cls, spec: RunSpec) -> SourceRecord:
        digests = source_files(spec)
        return cls({name: [sha, _stat(_path_of(spec, name))] for name, sha in digests.items()})

    def changes(self, spec: RunSpec) -> list[str]:
        """Names of recorded files whose content is another now. A file that is not at hand is not compared."""
        found = []
        for name, (sha, stat) in self.files.items():
            path = _path_of(spec, name)
            if path is None or not path.is_file() or _stat(path) == stat:
                continue
            if sha256_of(path) != sha:
                found.append(name)
        present = {
            f"{o}:{p.relative_to(r).as_posix()}"
            for o, r in _sources(spec)
            if r.is_dir()
            for p in r.rglob("*")
            if p.is_file()
        }
        return found + sorted(present - self.files.keys())


def _path_of(spec: RunSpec, name: str) -> Path | None:
    option, _, below = name.partition(":")
    root = dict(_sources(spec)).get(option)
    return None if root is None else root / below if below else root


def _stat(path: Path | None) -> list[int]:
    if path is None:
        return []
    found = path.stat()
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` to ``path`` atomically, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_atomically(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode(*_ENCODING))
