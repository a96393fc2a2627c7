"""Export of a store's rows to files for other tools: npy, safetensors, Parquet or FAISS, with ids and metadata in JSON.

    DIR/features.json       dataset, extractor, fingerprint and its fields; per table rows, dim, dtype, SHA-256
    DIR/<table>.npy         [rows, D]; or <table>.safetensors ("features", "keys") <table>.parquet
                            ("key", "id", "features"); or <table>.faiss (inner product over the rows as float32)
    DIR/<table>.ids.jsonl   one line per row, in the same order: {"key": ..., "ids": [image ids]}; with a dataset also
                            {"text": ...} and {"reference": ..., "text": ..., "turns": [[session, turn], ...]}

Turn 0 is all captions of a session as one text. features.json is written last: a folder without it is incomplete.
"""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np

from cache import Store
from manifests.errors import FashionNTMError
from manifests.identity import pair_key, text_key
from manifests.schema import Dataset

Format = Literal["npy", "safetensors", "parquet", "faiss"]
Names = dict[bytes, dict[str, Any]]  # content key -> what is known of the row: ids, or words and turns
FORMATS: tuple[Format, ...] = ("npy", "safetensors", "parquet", "faiss")
_LIBRARIES: dict[Format, str] = {"parquet": "pyarrow", "faiss": "faiss"}
ABOUT, VERSION = "features.json", 1
BLOCK_BYTES = 32 << 20


class ExportError(FashionNTMError):
    """The rows cannot be written to this folder or in this format."""


@dataclass
class Exported:
    """Result of an export: rows and file by table."""

    folder: Path
    tables: dict[str, dict[str, Any]] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        return {"folder": str(self.folder), "tables": self.tables}

    def text(self) -> str:
        rows = (f"{name:6} {t['rows']:,} x {t['dim']} {t['dtype']} in {t['file']}" for name, t in self.tables.items())
        return "\n".join([f"folder {self.folder}", *rows])


def export(store: Store, folder: Path, form: Format, dataset: Dataset | None = None) -> Exported:
    """Write every table of ``store`` to ``folder`` in the store's row order, in blocks of 32 MiB.

    ``dataset``: adds the words, sessions and turns of texts and queries. Raises ExportError for a non-empty folder,
    a format whose library is missing, or a full disk; StoreCorruptError for a damaged shard.
    """
    if form in _LIBRARIES:
        _library(form)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ExportError(f"{folder} is not an empty folder: give another --to, or delete it first")
    done = Exported(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for table in store.tables:
            file, ids, info = folder / f"{table}.{form}", f"{table}.ids.jsonl", store.tables[table]
            sha256, names = hashlib.sha256(), _names(store, table, dataset)
            _WRITERS[form](store, table, file, names, sha256)
            with open(folder / ids, "x", encoding="utf-8", newline="\n", errors="surrogatepass") as handle:
                for key in map(bytes, store.keys(table)):
                    handle.write(json.dumps({"key": key.hex(), **names.get(key, {})}) + "\n")
            about = {"rows": info.rows, "dim": info.dim, "dtype": info.dtype, "sha256": sha256.hexdigest()}
            done.tables[table] = {"file": file.name, "ids": ids, **about}
        record = {"format": "fashion-ntm features", "version": VERSION, **_origin(store)}
        record |= {"fields": store.fields, "tables": done.tables}
        (folder / ABOUT).write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        what = f"cannot write to {folder}: {error.strerror or error}"
        raise ExportError(f"{what}; delete the folder and export again") from error
    return done


def _origin(store: Store) -> dict[str, str]:
    return {"dataset": store.dataset, "extractor": store.extractor, "fingerprint": store.fingerprint}


def blocks(store: Store, table: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (keys uint8 [n, 16], features [n, D]) of a table in order. The next block overwrites the features."""
    info, keys = store.tables[table], store.keys(table)
    step = max(1, BLOCK_BYTES // (info.dim * np.dtype(info.dtype).itemsize))
    block = np.empty((min(step, info.rows), info.dim), dtype=info.dtype)
    for start in range(0, info.rows, step):
        rows = np.arange(start, min(start + step, info.rows))
        yield keys[rows], store.gather(table, rows, block[: len(rows)])


def _write_npy(store: Store, table: str, file: Path, names: Names, sha256: Any) -> None:
    info = store.tables[table]
    head = {"descr": np.dtype(info.dtype).newbyteorder("<").str, "fortran_order": False, "shape": (info.rows, info.dim)}
    with open(file, "xb") as handle:
        np.lib.format.write_array_header_1_0(handle, head)
        _write_rows(handle, store, table, sha256)


def _write_safetensors(store: Store, table: str, file: Path, names: Names, sha256: Any) -> None:
    """Write the safetensors format block by block; the library needs the whole table in memory."""
    info = store.tables[table]
    size = info.rows * info.dim * np.dtype(info.dtype).itemsize
    kind = {"float16": "F16", "float32": "F32"}[info.dtype]
    header: dict[str, Any] = {
        "__metadata__": _origin(store),
        "features": {"dtype": kind, "shape": [info.rows, info.dim], "data_offsets": [0, size]},
        "keys": {"dtype": "U8", "shape": [info.rows, 16], "data_offsets": [size, size + 16 * info.rows]},
    }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(file, "xb") as handle:
        handle.write(len(text).to_bytes(8, "little") + text)
        _write_rows(handle, store, table, sha256)
        handle.write(store.keys(table).tobytes())


def _write_parquet(store: Store, table: str, file: Path, names: Names, sha256: Any) -> None:
    """Write the columns key, id (see ``_row_id``) and features."""
    arrow, parquet, info = _library("parquet"), importlib.import_module("pyarrow.parquet"), store.tables[table]
    kind = arrow.float16() if info.dtype == "float16" else arrow.float32()
    columns = [("key", arrow.binary(16)), ("id", arrow.string()), ("features", arrow.list_(kind, info.dim))]
    schema = arrow.schema(columns, metadata=_origin(store))
    with parquet.ParquetWriter(file, schema) as writer:
        for keys, features in blocks(store, table):
            values = arrow.FixedSizeListArray.from_arrays(arrow.array(features.reshape(-1), kind), info.dim)
            column = arrow.array([key.tobytes() for key in keys], arrow.binary(16))
            ids = arrow.array([_row_id(key.tobytes(), names) for key in keys], arrow.string())
            writer.write_table(arrow.Table.from_arrays([column, ids, values], schema=schema))
            sha256.update(memoryview(np.ascontiguousarray(features)).cast("B"))


def _write_faiss(store: Store, table: str, file: Path, names: Names, sha256: Any) -> None:
    """Write an exact inner-product index; row n of the index is line n of the ids."""
    faiss = _library("faiss")
    index = faiss.IndexFlatIP(store.tables[table].dim)
    for _keys, features in blocks(store, table):
        rows = np.ascontiguousarray(features, dtype=np.float32)
        index.add(rows)
        sha256.update(memoryview(rows).cast("B"))
    faiss.write_index(index, str(file))


def _row_id(key: bytes, names: Names) -> str:
    """Return the image id, the text, or "reference: text" of a row; the hex key of a row without a name."""
    about = names.get(key, {})
    if "ids" in about:
        return about["ids"][0]
    return f"{about['reference']}: {about['text']}" if "reference" in about else about.get("text", key.hex())


def _write_rows(handle: BinaryIO, store: Store, table: str, sha256: Any) -> None:
    """Write the features of a table, little-endian."""
    for _, features in blocks(store, table):
        data = memoryview(np.ascontiguousarray(features, features.dtype.newbyteorder("<")).reshape(-1).view(np.uint8))
        handle.write(data)
        sha256.update(data)


def _library(form: Format) -> Any:
    """Import the library of a format. Raises ExportError without it."""
    name = _LIBRARIES[form]
    try:
        return importlib.import_module(name)
    except ImportError:
        *others, last = FORMATS[: FORMATS.index(form)]
        fix = f"`pip install 'fashion-ntm[{form}]'`, or choose --format {', '.join(others)} or {last}"
        raise ExportError(f"--format {form} needs {name}, which is not installed: {fix}") from None


# Each writes (store, table, file, names) and adds the features to a SHA-256.
_WRITERS = dict(zip(FORMATS, (_write_npy, _write_safetensors, _write_parquet, _write_faiss), strict=True))


def _names(store: Store, table: str, dataset: Dataset | None) -> Names:
    """Return the names of the rows that are known from store and dataset."""
    found: Names = {}
    bound = store.catalogue()
    if table in ("image", "target"):
        for image, key in bound.items():
            found.setdefault(key, {"ids": []})["ids"].append(image)
    elif dataset is not None and table == "text":
        found = {text_key(text): {"text": text} for _, text in dataset.queries()}
    elif dataset is not None:
        for session in dataset.sessions:
            for image, text, turn in session.queries():
                if image in bound:
                    about = {"reference": image, "text": text, "turns": []}
                    row = found.setdefault(pair_key(bound[image], text_key(text)), about)
                    row["turns"].append([session.id, turn])
    return found
