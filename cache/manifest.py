"""manifest.json: the committed state of a store. Human-readable; refused if any part was edited or damaged."""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from cache.errors import StoreCorruptError, StoreError, StoreNotFoundError, StoreVersionError
from cache.files import replace_atomically
from cache.layout import DTYPES, MANIFEST, TABLES, shard_number
from manifests.identity import KEY_BYTES, changed_fields, digest

FORMAT, VERSION = "fashion-ntm store", 1
_HEX = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class ShardInfo:
    """Immutable shard file: rows, size in bytes, SHA-256, and offsets of its two arrays (None: read through h5py)."""

    file: str
    rows: int
    bytes: int
    sha256: str
    features_at: int | None
    keys_at: int | None


@dataclass(frozen=True)
class TableInfo:
    """Table [rows, dim] of ``dtype``; its rows are the concatenated rows of its shards."""

    rows: int
    dim: int
    dtype: str
    shards: tuple[ShardInfo, ...]

    def with_shard(self, shard: ShardInfo) -> TableInfo:
        return replace(self, rows=self.rows + shard.rows, shards=(*self.shards, shard))


@dataclass(frozen=True)
class CatalogueInfo:
    """Binding image id -> key. ``replaces``: the previous one, while the file is being replaced."""

    ids: int
    bytes: int
    sha256: str
    replaces: CatalogueInfo | None = None


@dataclass(frozen=True)
class Manifest:
    """Committed state of a store. ``fields`` identify it; ``execution``, one record per writer session, does not."""

    dataset: str
    extractor: str
    fingerprint: str
    fields: dict[str, Any]
    versions: dict[str, str]  # of the writer that created the store
    tables: dict[str, TableInfo] = field(default_factory=dict)
    catalogue: CatalogueInfo | None = None
    execution: tuple[dict[str, Any], ...] = ()
    retired: dict[str, int] = field(default_factory=dict)  # table -> shard numbers below this one are never reused

    def as_dict(self) -> dict[str, Any]:
        """Return the contents of manifest.json without its own digest."""
        tables = {
            name: {**vars(info), "shards": [dict(vars(shard)) for shard in info.shards]}
            for name, info in self.tables.items()
        }
        catalogue = asdict(self.catalogue) if self.catalogue else None
        parts = {**vars(self), "execution": list(self.execution), "catalogue": catalogue, "tables": tables}
        if not self.retired:
            del parts["retired"]
        return {"format": FORMAT, "version": VERSION, **parts}

    @property
    def shards(self) -> list[ShardInfo]:
        """The shards of all tables."""
        return [shard for info in self.tables.values() for shard in info.shards]

    def __getitem__(self, name: str) -> Any:
        return self.as_dict()[name]

    def keys(self) -> list[str]:
        return list(self.as_dict())

    def with_shard(self, table: str, dim: int, dtype: str, shard: ShardInfo) -> Manifest:
        info = self.tables.get(table) or TableInfo(0, dim, dtype, ())
        tables = {**self.tables, table: info.with_shard(shard)}
        return replace(self, tables={name: tables[name] for name in TABLES if name in tables})

    def next_number(self, table: str) -> int:
        """Return the number of the next shard of ``table``. The name of a dropped shard is never reused."""
        info = self.tables.get(table)
        return max(self.retired.get(table, 0), shard_number(info.shards[-1].file)[1] + 1 if info else 0)

    def without(self, shards: Collection[str]) -> Manifest:
        """Return the manifest without these shards (file names) and retire their numbers; empty tables are removed."""
        tables, retired = {}, dict(self.retired)
        for name, info in self.tables.items():
            kept = tuple(s for s in info.shards if s.file not in shards)
            if len(kept) < len(info.shards):
                retired[name] = self.next_number(name)
            if kept:
                tables[name] = replace(info, shards=kept, rows=sum(s.rows for s in kept))
        return replace(self, tables=tables, retired=retired)

    def changes(self, fields: dict[str, Any]) -> list[str]:
        """Return one line ``field: old -> new`` for each of ``fields`` that differs from the store; empty if none."""
        lines = changed_fields(self.fields, fields)
        if not lines and self.fingerprint != digest(fields):
            lines = ["fields: a value is of another kind (1 and true, or null and absent)"]
        return lines

    def origin_of(self, sha256: str) -> str:
        """Describe a file with this digest where another one was expected."""
        shards = [s.file for s in self.shards if s.sha256 == sha256]
        return f"holds the bytes of {shards[0]}: files were swapped" if shards else "was changed: its digest differs"

    def save(
        self, directory: Path, after: Sequence[Callable[[], object]] = (), last: Callable[[], object] = lambda: None
    ) -> None:
        """Replace manifest.json after the tasks of ``after`` (syncs of its files) and ``last``. Raise OSError."""
        about = self.as_dict()
        text = _text({**about, "digest": digest(about)})
        replace_atomically(directory / MANIFEST, text.encode() + b"\n", after=after, last=last)


def _text(about: dict[str, Any]) -> str:
    """Return human-readable JSON: one line per shard, the tables last."""
    head = json.dumps({k: v for k, v in about.items() if k != "tables"}, indent=1, ensure_ascii=False)
    tables = []
    for name, table in about["tables"].items():
        counts = json.dumps({k: v for k, v in table.items() if k != "shards"})
        shards = ",\n".join(f"   {json.dumps(shard)}" for shard in table["shards"])
        tables.append(f'  "{name}": {counts[:-1]}, "shards": [\n{shards}\n  ]}}')
    return head.removesuffix("\n}") + ',\n "tables": {\n' + ",\n".join(tables) + "\n }\n}"


def load_manifest(directory: Path) -> Manifest:
    """Read and check manifest.json.

    Raise StoreNotFoundError, StoreVersionError for a newer format, StoreCorruptError for any change.
    """
    path = directory / MANIFEST
    try:
        text = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        what = f"{path} is missing" if directory.is_dir() else f"{directory} does not exist"
        raise StoreNotFoundError(f"there is no store: {what}; run the extraction that makes it") from None
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror or error}") from error
    try:
        about = json.loads(text)
        version, found = about["version"], about.pop("digest", None)
        known = about["format"] == FORMAT and type(version) is int
        whole = found == digest(about)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise _damaged(path, f"it is not a manifest ({type(error).__name__}: {error})") from None
    if known and version > VERSION:
        doubt = "" if whole else ", or the file is damaged"
        raise StoreVersionError(
            f"{path} is in format {version}; this version of the project reads up to format {VERSION}{doubt}: "
            "upgrade the project, or extract into another folder"
        )
    if not known or version < 1 or not whole:
        raise _damaged(path, "its digest does not match its content")
    try:
        return _parse(about)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise _damaged(path, f"{type(error).__name__}: {error}") from None


def _damaged(path: Path, why: str) -> StoreCorruptError:
    return StoreCorruptError(
        f"{path} was edited or damaged: {why}. Restore it from a copy; or move it away and run the extraction again, "
        "which takes back every shard whose receipt in the ledger matches"
    )


def _parse(about: Mapping[str, Any]) -> Manifest:
    """Convert the manifest to its types. Raise ValueError or TypeError: a digest does not imply valid contents."""
    fields = about["fields"]
    if not isinstance(fields, dict) or about["fingerprint"] != digest(fields):
        raise ValueError("the fingerprint is not the digest of the fields")
    tables = {_expect(name, name in TABLES, "table"): _table(name, table) for name, table in about["tables"].items()}
    catalogue = about["catalogue"]
    return Manifest(
        dataset=_expect(about["dataset"], isinstance(about["dataset"], str), "dataset"),
        extractor=_expect(about["extractor"], isinstance(about["extractor"], str), "extractor"),
        fingerprint=about["fingerprint"],
        fields=fields,
        versions={str(k): str(v) for k, v in about["versions"].items()},
        tables=tables,
        catalogue=None if catalogue is None else _catalogue(catalogue),
        execution=tuple(_expect(record, isinstance(record, dict), "execution") for record in about["execution"]),
        retired={_expect(k, k in TABLES, "table"): _count(v, 0) for k, v in about.get("retired", {}).items()},
    )


def _table(name: str, about: Mapping[str, Any]) -> TableInfo:
    dtype, dim = _expect(about["dtype"], about["dtype"] in DTYPES, "dtype"), _count(about["dim"], 1)
    places = [shard_number(s["file"]) for s in about["shards"]]
    if any(place <= before for before, place in pairwise([(name, -1), *places])) or {t for t, _ in places} != {name}:
        raise ValueError(f"the shards of {name} are out of order, listed twice, of another table, or none")
    shards = tuple(
        ShardInfo(
            file=s["file"],
            rows=_count(s["rows"], 1),
            bytes=_count(s["bytes"], 1),
            sha256=_hex(s["sha256"]),
            features_at=None if s["features_at"] is None else _count(s["features_at"], 0),
            keys_at=None if s["keys_at"] is None else _count(s["keys_at"], 0),
        )
        for s in about["shards"]
    )
    width = np.dtype(dtype).itemsize * dim
    for s in shards:
        ends = [at + s.rows * size for at, size in ((s.features_at, width), (s.keys_at, KEY_BYTES)) if at is not None]
        if max(ends, default=0) > s.bytes:
            raise ValueError(f"{s.file} is smaller than its rows")
    return TableInfo(_expect(about["rows"], about["rows"] == sum(s.rows for s in shards), "rows"), dim, dtype, shards)


def _catalogue(about: Mapping[str, Any]) -> CatalogueInfo:
    before = about["replaces"]
    return CatalogueInfo(
        _count(about["ids"], 0),
        _count(about["bytes"], 1),
        _hex(about["sha256"]),
        None if before is None else _catalogue({**before, "replaces": None}),
    )


def _expect(value: Any, right: bool, what: str) -> Any:
    if not right:
        raise ValueError(f"{what} {value!r} is not allowed")
    return value


def _count(value: Any, least: int) -> int:
    return _expect(value, type(value) is int and least <= value < 1 << 62, "number")


def _hex(value: Any) -> str:
    return _expect(value, isinstance(value, str) and bool(_HEX.fullmatch(value)), "digest")


@cache
def versions() -> dict[str, str]:
    """Return software versions: recorded, never keyed (a version that changes features is a field of the extractor)."""
    try:
        project = metadata.version("fashion-ntm")
    except metadata.PackageNotFoundError:
        project = "not installed"
    return {
        "project": project,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "h5py": h5py.__version__,
        "hdf5": h5py.version.hdf5_version,
    }
