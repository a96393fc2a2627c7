"""Record of the content that stage 1 read for a spec, and checks of data and model files against it.

A binding maps each image id of a dataset to its content key (16 bytes). It belongs to one extraction of one dataset,
not to a dataset name: two folders with one name have two bindings. Stage 2 reads rows only through the binding.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py

from cache.catalogue import ENCODING, arrays_of, read_entries, sorted_entries
from cache.files import replacing
from cache.hdf5 import write_hdf5
from cache.stat_cache import sha256_of, stamp_of
from manifests.errors import IncompleteError
from manifests.identity import digest
from manifests.schema import Dataset, RunSpec
from pipeline.core.image_files import image_keys

_SHOWN = 3


class StaleError(IncompleteError):
    """A record was made from other data than the spec's present data; the message names it and the next command."""


def declared_digest(dataset: Dataset) -> str:
    """Return the SHA-256 (64 hex digits) of the dataset's image entries: ids, files, captions, attributes."""
    attributes = {image: sorted(own.items()) for image, own in dataset.attributes.items()}
    return digest(sorted([i.id, i.file, i.caption, attributes.get(i.id, [])] for i in dataset.images.values()))


def save_binding(folder: Path, keys: Mapping[str, bytes]) -> str:
    """Write ``keys`` (image id -> content key) to ``folder`` unless they exist; return the binding's name, a digest."""
    entries = sorted_entries(keys)
    name = _name(entries)
    path = folder / f"{name}.h5"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            write_hdf5(temporary, arrays_of(entries), {"format": "fashion-ntm binding 1"})
    return name


def load_binding(folder: Path, name: str) -> dict[str, bytes]:
    """Read a binding: image id -> content key. Raises StaleError if it is missing or its digest differs."""
    path = folder / f"{name}.h5"
    try:
        with h5py.File(path, "r") as file:
            entries = read_entries(file)
    except (OSError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise StaleError(f"{path} is missing or damaged ({error}): run `extract` again, rows are kept") from None
    if _name(entries) != name:
        raise StaleError(f"{path} has another content than its name says: run `extract` again, rows are kept")
    return {image.decode(*ENCODING): key for image, key in entries}


def _name(entries: list[tuple[bytes, bytes]]) -> str:
    hasher = hashlib.sha256()
    for image, key in entries:
        hasher.update(len(image).to_bytes(4, "little") + image + key)
    return hasher.hexdigest()[:16]


def image_changes(dataset: Dataset, keys: Mapping[str, bytes], digests: Path) -> str:
    """Name the images whose content differs from their recorded key. ``digests``: file that caches digests by stat.

    A file that is unreadable now keeps its recorded key. Without an images folder, nothing is compared.
    """
    changed: dict[str, list[str]] = {"have another content": [], "became readable": []}
    if dataset.images_root is not None and dataset.images_root.is_dir():
        for image, key in image_keys(dataset.images.values(), dataset.images_root, digests).items():
            if isinstance(key, bytes) and keys.get(image) != key:
                changed["have another content" if image in keys else "became readable"].append(image)
    shown = {what: ", ".join(map(repr, ids[:_SHOWN])) + ", ..." * (len(ids) > _SHOWN) for what, ids in changed.items()}
    return " and ".join(f"{len(ids):,} images {what} ({shown[what]})" for what, ids in changed.items() if ids)


def source_record(spec: RunSpec) -> dict[str, Any]:
    """Return (SHA-256, stat) of every local file that extractor and composer options name, also in named folders.

    Keys are ``option:relative path``, so a moved model folder keeps its keys.
    """
    return {name: [sha256_of(file), stamp_of(file.stat())] for name, file in _source_files(spec).items()}


def source_changes(record: Mapping[str, Any], spec: RunSpec) -> list[str]:
    """Return the names of source files that changed, went or came since ``record``, a ``source_record``.

    An option whose path does not exist is not compared.
    """
    files, options = _source_files(spec), {option for option, _ in _sources(spec)}
    found = []
    for name, (sha, stat) in record.items():
        file = files.get(name)
        if file is None:
            found += [name] if name.partition(":")[0] in options else []
        elif stamp_of(file.stat()) != stat and sha256_of(file) != sha:
            found.append(name)
    return found + sorted(name for name in files.keys() - record.keys() if not name.endswith(":"))


def _source_files(spec: RunSpec) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for option, path in _sources(spec):
        if path.is_file():
            found[f"{option}:"] = path
        found |= {f"{option}:{p.relative_to(path).as_posix()}": p for p in sorted(path.rglob("*")) if p.is_file()}
    return found


def _sources(spec: RunSpec) -> list[tuple[str, Path]]:
    parts: list[tuple[str, dict[str, Any]]] = [("extractor", spec.extractor.options)]
    parts += [("composer", spec.composer.options)] if spec.composer else []
    named = [(f"{part}.{key}", value) for part, options in parts for key, value in options.items()]
    paths = [(option, Path(value).expanduser()) for option, value in named if isinstance(value, str) and value]
    return [(option, path) for option, path in paths if path.exists()]
