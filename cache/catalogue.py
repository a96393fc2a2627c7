"""catalogue.h5: content key of each image id, so that stage 2 finds rows without reading images.

Datasets: "keys" uint8 [n, 16]; "id_bytes" uint8, all ids concatenated in UTF-8; "id_ends" int64 [n], end offset of
each id. Ids may contain any characters (spaces, slashes, any script) and be long (10 kB). They are sorted by their
bytes, so equal bindings give equal files.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import h5py
import numpy as np

from cache.errors import StoreCorruptError, StoreError
from cache.hdf5 import require_own_data, write_hdf5
from cache.layout import CATALOGUE
from cache.manifest import CatalogueInfo, Manifest
from cache.stat_cache import sha256_of
from manifests.identity import KEY_BYTES, stack_keys

CATALOGUE_FORMAT = "fashion-ntm catalogue 1"
ENCODING = ("utf-8", "surrogatepass")  # Python decodes invalid file names to lone surrogates


def write_catalogue(path: Path, manifest: Manifest, catalogue: Mapping[str, bytes]) -> CatalogueInfo:
    """Write ``path`` without syncing it. Raise StoreError for a key that is not 16 bytes or an id that is no text."""
    for image, key in catalogue.items():
        if not isinstance(image, str) or not image:
            raise StoreError(f"catalogue: image id {image!r} must be a text that is not empty")
        if not isinstance(key, bytes) or len(key) != KEY_BYTES:
            raise StoreError(f"catalogue: the key of image {image[:80]!r} must be {KEY_BYTES} bytes, not {key!r}")
    entries = sorted_entries(catalogue)
    about = {"format": CATALOGUE_FORMAT, "dataset": manifest.dataset, "fingerprint": manifest.fingerprint}
    write_hdf5(path, arrays_of(entries), about)
    return CatalogueInfo(len(entries), path.stat().st_size, sha256_of(path))


def read_catalogue(directory: Path, info: CatalogueInfo | None) -> dict[str, bytes] | None:
    """Read image id -> 16-byte key of ``info`` or the binding it replaces. None if the file differs or is missing."""
    if info is None:
        return {}
    path = directory / CATALOGUE
    try:
        data = path.read_bytes()  # read once, so that the digest is of the decoded bytes
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror or error}") from error
    found = hashlib.sha256(data).hexdigest()
    if found not in {i.sha256 for i in (info, info.replaces) if i}:
        return None
    try:
        with h5py.File(io.BytesIO(data), "r") as file:
            require_own_data(file)
            return {image.decode(*ENCODING): key for image, key in read_entries(file)}
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise StoreCorruptError(f"{path} has the right digest but is no catalog: {error}") from error


def sorted_entries(keys: Mapping[str, bytes]) -> list[tuple[bytes, bytes]]:
    """Return (id in UTF-8, key) for each image, sorted."""
    return sorted((image.encode(*ENCODING), key) for image, key in keys.items())


def arrays_of(entries: Sequence[tuple[bytes, bytes]]) -> dict[str, np.ndarray]:
    """Return the datasets of (id, key) pairs (see the module's docstring)."""
    return {
        "keys": stack_keys(key for _, key in entries),
        "id_bytes": np.frombuffer(b"".join(image for image, _ in entries), dtype=np.uint8),
        "id_ends": np.cumsum([len(image) for image, _ in entries], dtype=np.int64),
    }


def read_entries(file: h5py.File) -> list[tuple[bytes, bytes]]:
    """Return the (id, key) pairs of a file with ``arrays_of``. Raise KeyError or ValueError if it has none."""
    keys, text, ends = file["keys"][()].tobytes(), file["id_bytes"][()].tobytes(), file["id_ends"][()].tolist()
    if len(keys) != KEY_BYTES * len(ends):
        raise ValueError(f"{len(ends)} ids for {len(keys) // KEY_BYTES} keys")
    starts = [0, *ends][: len(ends)]
    return [
        (text[start:end], keys[n * KEY_BYTES : (n + 1) * KEY_BYTES])
        for n, (start, end) in enumerate(zip(starts, ends, strict=True))
    ]
