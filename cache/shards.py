"""Write and check a shard before it is committed, and check its header."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cache.errors import StoreError
from cache.files import sync_file
from cache.hdf5 import FileImage, OutsideDataError, read_header
from cache.index import as_keys, duplicates
from cache.layout import DTYPES, shard_name, shard_number
from cache.manifest import Manifest, ShardInfo, TableInfo
from cache.rows import read_features, read_keys
from manifests.identity import KEY_BYTES

SHARD_FORMAT = "fashion-ntm shard 1"
_BLOCK = 1 << 18  # bytes per block; fits in the processor's cache


def check_rows(
    table: str, info: TableInfo | None, keys: np.ndarray, features: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Check rows before they enter a store; return keys and features, contiguous and little-endian.

    ``info``: the table so far. Raise StoreError naming the table and the first invalid rows. ``write_shard`` refuses
    NaN and Inf, concurrently with the disk writes.
    """
    try:
        keys = as_keys(keys, f"keys of table '{table}'")
    except ValueError as error:
        raise StoreError(str(error)) from None
    if not isinstance(features, np.ndarray) or features.ndim != 2 or features.dtype.name not in DTYPES:
        found = (
            f"{features.dtype} {list(features.shape)}" if isinstance(features, np.ndarray) else type(features).__name__
        )
        raise StoreError(f"features of table '{table}' must be float16 or float32 [n, D], not {found}")
    if len(keys) != len(features):
        raise StoreError(f"table '{table}': {len(keys)} keys for {len(features)} rows of features")
    if not len(keys) or not features.shape[1]:
        raise StoreError(f"table '{table}': nothing to commit, features are {list(features.shape)}")
    if info and (info.dim, info.dtype) != (features.shape[1], features.dtype.name):
        raise StoreError(
            f"table '{table}' holds {info.dtype} [n, {info.dim}], not {features.dtype} [n, {features.shape[1]}]: "
            "features of one store come from one model"
        )
    features = np.ascontiguousarray(features, features.dtype.newbyteorder("<"))
    again = duplicates(keys)
    if len(again):
        raise StoreError(
            f"table '{table}': keys appear twice in {_some(again)} of {len(keys)} rows: commit unique items"
        )
    return keys, features


def nonfinite_rows(features: np.ndarray) -> np.ndarray:
    """Return the rows of features [n, D] with NaN or Inf -> int64 [m].

    Their bit patterns are the largest of each sign: two integer maxima per block show that there are none, 15x faster
    than isfinite.
    """
    half = features.dtype.itemsize == 2
    signed, unsigned, positive, negative = (
        (np.int16, np.uint16, 0x7C00, 0xFC00) if half else (np.int32, np.uint32, 0x7F800000, 0xFF800000)
    )
    step, found = max(1, _BLOCK // max(1, features.itemsize * features.shape[1])), []
    for start in range(0, len(features), step):
        block = np.ascontiguousarray(features[start : start + step])
        if block.view(signed).max(initial=0) >= positive or block.view(unsigned).max(initial=0) >= negative:
            found.append(start + np.flatnonzero(~np.isfinite(block).all(axis=1)))
    return np.concatenate(found) if found else np.empty(0, dtype=np.int64)


def _some(rows: np.ndarray) -> str:
    head = ", ".join(map(str, rows[:5].tolist()))
    return f"row{'s' if len(rows) > 1 else ''} {head}" + (f" ... ({len(rows)})" if len(rows) > 5 else "")


def expected_attributes(manifest: Manifest, table: str, number: int, rows: int, dim: int) -> dict[str, str | int]:
    """Return the root attributes of a shard. They reveal a moved or renamed shard by its header alone."""
    return {
        "format": SHARD_FORMAT,
        "dataset": manifest.dataset,
        "extractor": manifest.extractor,
        "fingerprint": manifest.fingerprint,
        "table": table,
        "number": number,
        "rows": rows,
        "dim": dim,
    }


def write_shard(
    path: Path, manifest: Manifest, table: str, number: int, keys: np.ndarray, features: np.ndarray
) -> ShardInfo:
    """Write ``path``, close it, read it back and compare it, and sync it. Equal input gives equal bytes.

    Writing, the digest (from memory) and the checks run concurrently. The file is opened again and compared with the
    hashed bytes, so the digest is the file's. Raise StoreError for NaN and Inf and if the file read back differs,
    OSError (disk full ...).
    """
    image = FileImage(
        {"features": features, "keys": keys}, expected_attributes(manifest, table, number, *features.shape)
    )
    with ThreadPoolExecutor(1) as disk, ThreadPoolExecutor(1) as hasher:
        written, synced = disk.submit(image.write, path), disk.submit(sync_file, path)
        sha256 = hasher.submit(image.sha256)
        bad = nonfinite_rows(features)
        if len(bad):
            raise StoreError(
                f"table '{table}': NaN or Inf in {_some(bad)} of {len(features)} rows: record them as failures"
            )
        written.result()
        same, place = image.same_as(path), (image.offsets["features"], image.offsets["keys"])
        info = ShardInfo(shard_name(table, number), len(keys), image.size, sha256.result(), *place)
        kind = TableInfo(len(keys), features.shape[1], features.dtype.name, (info,))
        wrong = header_problems(path, manifest, table, number, info, kind)
        synced.result()
    if wrong or not same:
        what = wrong[0] if wrong else "its bytes differ"
        raise StoreError(f"{path} does not read back as written ({what}): the disk or memory is failing")
    return info


@dataclass(frozen=True)
class FoundShard:
    """Examined shard file: its manifest entry, keys uint8 [n, 16], width and dtype."""

    file: Path
    shard: ShardInfo
    keys: np.ndarray
    dim: int
    dtype: str

    @property
    def table(self) -> str:
        return shard_number(self.shard.file)[0]

    def features(self) -> np.ndarray:
        """Shape [n, D] of the features."""
        out = np.empty((self.shard.rows, self.dim), dtype=self.dtype)
        read_features(self.file, self.shard, out)
        return out


def examine(file: Path, name: str, manifest: Manifest, sha256: str) -> FoundShard:
    """Examine the shard ``name`` in ``file`` with digest ``sha256`` as a further shard of its table.

    Raise ValueError if its header, shape, dtype or keys do not fit the store; OSError if it cannot be read.
    """
    table, number = shard_number(name)
    header = read_header(file)
    if not {"features", "keys"} <= header.shapes.keys() or len(header.shapes["features"]) != 2:
        raise ValueError("it has no features [n, D] and keys")
    (rows, dim), dtype = header.shapes["features"], header.dtypes["features"]
    if dtype not in DTYPES:
        raise ValueError(f"its features are {dtype}")
    shard = ShardInfo(name, rows, file.stat().st_size, sha256, header.offsets["features"], header.offsets["keys"])
    kind = manifest.tables.get(table) or TableInfo(0, dim, dtype, ())
    problems = header_problems(file, manifest, table, number, shard, kind)
    if problems:
        raise ValueError(problems[0])
    keys = read_keys(file, shard)
    if len(duplicates(keys)):
        raise ValueError("a key appears twice")
    return FoundShard(file, shard, keys, dim, dtype)


def header_problems(
    path: Path, manifest: Manifest, table: str, number: int, info: ShardInfo, kind: TableInfo
) -> list[str]:
    """Return the differences of a shard's header from the expected one. Reads no rows."""
    try:
        header = read_header(path)
    except OutsideDataError as error:
        return [f"it does not hold its own data: {error}"]
    except OSError as error:
        return [f"it is no readable HDF5 file: {error}"]
    wanted = expected_attributes(manifest, table, number, info.rows, kind.dim)
    problems = [
        f"{name} is {header.attributes.get(name)!r}, not {value!r}"
        for name, value in wanted.items()
        if header.attributes.get(name) != value
    ]
    layout = {
        "features": ((info.rows, kind.dim), kind.dtype, info.features_at),
        "keys": ((info.rows, KEY_BYTES), "uint8", info.keys_at),
    }
    for name, (shape, dtype, offset) in layout.items():
        if header.shapes.get(name) != shape or header.dtypes.get(name) != dtype:
            found = f"{header.dtypes.get(name)} {header.shapes.get(name)}"
            problems.append(f"dataset '{name}' is {found}, not {dtype} {shape}")
        elif offset is not None and header.offsets[name] != offset:
            problems.append(f"dataset '{name}' lies at byte {header.offsets[name]}, not {offset}")
    return problems
