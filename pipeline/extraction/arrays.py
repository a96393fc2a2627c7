"""Reader of a folder of user-provided feature arrays with row names; checks everything, looks rows up by name.

    DIR/<table>.npy or DIR/<table>.safetensors     [rows, D], float16 or float32; tables: query and target,
                                                   or image and text (then a composer makes the queries)
    DIR/<table>.ids.txt or DIR/<table>.ids.jsonl   one line per row, in row order

ids.txt: an image id (image, target); a text (text); ``session<TAB>turn`` (query), with turns from 1, and turn 0 for all
captions of the session as one text. ids.jsonl: {"id": ...} or {"ids": [...]}; {"text": ...}; {"session": ..., "turn":
...} or {"reference": image id, "text": ...}; or {"key": ...} as ``cache export`` writes it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from cache.layout import DTYPES, TABLES
from cache.shards import nonfinite_rows
from manifests.datasets._files import whole_json
from manifests.errors import FashionNTMError, Problems
from manifests.identity import text_key
from manifests.kinds import NUMPY, SAFETENSORS, kind_of
from manifests.text import brief, decode_text, parse_json, read_bounded

SETS = ({"query", "target"}, {"image", "text"})
_KIND = {"F16": "<f2", "F32": "<f4"}
_BLOCK = 8192
Pair = tuple[str, str]  # reference image id, text
Name = str | bytes | Pair | tuple[str, int]  # of a row: image id or text, content key, query, session and turn


@dataclass
class TableArrays:
    """One table: ``features`` [rows, D], memory-mapped, and row numbers by name."""

    table: str
    file: Path
    features: np.ndarray
    labels: list[str] = field(default_factory=list)  # one per row, for messages
    rows_by_name: dict[Name, int] = field(default_factory=dict)
    bound: dict[str, bytes] = field(default_factory=dict)  # image id -> content key, for lines with both
    digest: str = ""  # digest of dtype, shape and all values
    names: str = ""  # digest of the names, in order

    @property
    def rows(self) -> int:
        return len(self.features)

    def text_row(self, text: str) -> int:
        """Return the row of a feedback text, by its words or its content key; -1 if absent."""
        return self.rows_by_name.get(text, self.rows_by_name.get(text_key(text), -1))


def open_arrays(path: Path) -> dict[str, TableArrays]:
    """Map and check all arrays of a folder. Raises ManifestError with all problems, by file and row."""
    problems = Problems(path)
    if not path.is_dir():
        problems.add("", "no such folder", "give the folder that holds query.npy and target.npy")
        problems.raise_if_any()
    tables: dict[str, TableArrays] = {}
    for table in TABLES:
        found = [f for f in (path / f"{table}.npy", path / f"{table}.safetensors") if f.is_file()]
        if len(found) > 1:
            problems.add("", f"both {found[0].name} and {found[1].name}", "keep one of them")
        elif found and (arrays := _table(table, found[0], problems)) is not None:
            tables[table] = arrays
    if not problems.found and set(tables) not in SETS:
        fix = "expected query.npy and target.npy, or image.npy and text.npy (or .safetensors)"
        problems.add("", f"holds {', '.join(tables) or 'no table at all'}", fix)
        _name_others(path, problems)
    dims = {t.table: t.features.shape[1] for t in tables.values()}
    if not problems.found and "query" in dims and dims["query"] != dims["target"]:
        problems.add("", f"query has D = {dims['query']} and target D = {dims['target']}", "cosine needs one D")
    problems.raise_if_any()
    return tables


def _name_others(path: Path, problems: Problems) -> None:
    """Report files that are named like a table but have another suffix, with the next step."""
    for file in sorted(path.iterdir()):
        table, _, suffix = file.name.partition(".")
        if table in TABLES and suffix not in ("npy", "safetensors") and "ids" not in suffix and file.is_file():
            kind = kind_of(file)
            problems.add("", f"is {kind.name}, which is not read", kind.advice, file)


def _table(table: str, file: Path, problems: Problems) -> TableArrays | None:
    expected = NUMPY if file.suffix == ".npy" else SAFETENSORS
    try:
        kind = kind_of(file)
        if kind.name != expected:
            problems.add("", f"is {kind.name}, not {expected}", kind.advice, file)
            return None
        features = _map_npy(file) if file.suffix == ".npy" else _map_safetensors(file)
    except (OSError, EOFError, SyntaxError, ValueError, FashionNTMError) as error:
        problems.add("", f"cannot be read: {' '.join(str(error).split())[:200]}", "", file)
        return None
    if features.ndim != 2 or not features.size:
        problems.add("", f"is an array {list(features.shape)}", "expected [rows, D], neither of them 0", file)
        return None
    if features.dtype.name not in DTYPES:
        fix = f"expected {' or '.join(DTYPES)}: save it with .astype(numpy.float32)"
        problems.add("", f"holds {features.dtype}", fix, file)
        return None
    arrays = TableArrays(table, file, features)
    if not _read_names(arrays, problems):
        return None
    _read_values(arrays, problems)
    return arrays


def _map_npy(file: Path) -> np.ndarray:
    try:
        return np.load(file, mmap_mode="r", allow_pickle=False)
    except ValueError as error:
        if "pickle" in str(error).lower() or "Python objects" in str(error):
            raise ValueError("holds Python objects, not numbers: save it with .astype(numpy.float32)") from None
        if "mmap length" in str(error):
            raise ValueError(f"truncated: its {file.stat().st_size:,} bytes are fewer than its header says") from None
        raise
    except (TokenError, SyntaxError, TypeError, OverflowError, MemoryError) as error:  # numpy parses the header's text
        raise ValueError(f"its header is damaged ({error}): copy or export it again") from None


def _map_safetensors(file: Path) -> np.ndarray:
    """Map the tensor "features", or the only two-dimensional one, with numpy; safetensors validates the file."""
    try:
        with safe_open(str(file), framework="np") as held:
            shapes = {name: tuple(held.get_slice(name).get_shape()) for name in held.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"no safetensors file: {error}") from None
    flat = [name for name, shape in shapes.items() if len(shape) == 2]
    name = "features" if "features" in shapes else flat[0] if len(flat) == 1 else None
    if name is None:
        raise ValueError(f"holds tensors {', '.join(shapes) or 'none'}: name the one to read 'features'")
    with open(file, "rb") as handle:
        size = int.from_bytes(handle.read(8), "little")
        about = json.loads(handle.read(size))[name]
    if about["dtype"] not in _KIND:
        raise ValueError(f"tensor {name!r} is {about['dtype']}, expected F16 or F32")
    return np.memmap(file, _KIND[about["dtype"]], "r", 8 + size + about["data_offsets"][0], shapes[name])


def _read_values(arrays: TableArrays, problems: Problems) -> None:
    total = hashlib.sha256(f"{arrays.features.dtype.name} {arrays.features.shape}".encode())
    bad: list[int] = []
    for start in range(0, arrays.rows, _BLOCK):
        block = np.ascontiguousarray(arrays.features[start : start + _BLOCK])
        block = block.astype(block.dtype.newbyteorder("<"), copy=False)
        total.update(memoryview(block.reshape(-1).view(np.uint8)))
        bad += (start + nonfinite_rows(block)).tolist()
    arrays.digest = total.hexdigest()
    if bad:
        some = ", ".join(f"row {n} ({arrays.labels[n]})" for n in bad[:5]) + (" ..." if len(bad) > 5 else "")
        problems.add(some, f"NaN or Inf in {len(bad)} rows", "leave these rows out, with their ids", arrays.file)


def _read_names(arrays: TableArrays, problems: Problems) -> bool:
    stem = arrays.file.with_suffix("")
    files = [f for f in (stem.with_name(f"{arrays.table}.ids.{end}") for end in ("txt", "jsonl")) if f.is_file()]
    if len(files) != 1:
        what = "has no ids" if not files else f"has {files[0].name} and {files[1].name}"
        problems.add("", what, f"expected {arrays.table}.ids.txt or {arrays.table}.ids.jsonl beside it", arrays.file)
        return False
    file, before = files[0], len(problems.found)
    names, count = hashlib.sha256(), 0
    for count, (line, record) in enumerate(_records(file, arrays.table, problems), start=1):
        if count <= arrays.rows:
            _enter(arrays, record, count - 1, line, file, problems)
        names.update(json.dumps(record, sort_keys=True).encode() + b"\n")
    if len(problems.found) == before and count != arrays.rows:
        problems.add("", f"{count} lines for {arrays.rows} rows of {arrays.file.name}", "one line a row", file)
    arrays.names = names.hexdigest()
    return len(problems.found) == before


def _records(file: Path, table: str, problems: Problems) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line, record) for each line; both file types give the same records."""
    try:
        content = decode_text(read_bounded(file))
    except (OSError, UnicodeDecodeError) as error:
        what = error.reason if isinstance(error, UnicodeDecodeError) else error
        problems.add("", f"cannot be read as UTF-8 text: {what}", "", file)
        return
    if file.suffix == ".jsonl" and (whole := whole_json(content)) is not None:
        problems.add("", f"{whole}; one object per line is expected", "in Python: json.dumps of each", file)
        return
    lines = content.split("\n")
    for number, text in enumerate(lines[:-1] if lines[-1] == "" else lines, start=1):
        if file.suffix == ".jsonl":
            try:
                record = parse_json(text)
            except ValueError as error:
                problems.add(f"line {number}", f"is not JSON: {error}", "one object a line", file)
                continue
            if not isinstance(record, dict):
                problems.add(f"line {number}", f"is {type(record).__name__}", "expected an object", file)
                continue
        elif table == "query":
            session, tab, turn = text.rstrip("\r").rpartition("\t")
            record = {"session": session, "turn": int(turn) if tab and turn.isdecimal() and len(turn) < 10 else turn}
        else:
            record = {"text" if table == "text" else "id": text.rstrip("\r")}
        yield number, record


def _enter(arrays: TableArrays, record: dict[str, Any], row: int, line: int, file: Path, problems: Problems) -> None:
    """Add the names of one row; report lines without a name and duplicate names."""
    try:
        found = _names(arrays, record)
    except (ValueError, TypeError, KeyError) as error:
        what = f"{json.dumps(record)[:100]}: {str(error)[:200]}"
        problems.add(f"line {line}", what, "see the module's page for the forms", file)
        arrays.labels.append("?")
        return
    arrays.labels.append(repr(found[0])[:80])
    for name in found:
        if (other := arrays.rows_by_name.get(name)) is not None:
            problems.add(f"line {line}", f"{brief(name)} is also on line {other + 1}", "a name has one row", file)
        arrays.rows_by_name[name] = row


def _names(arrays: TableArrays, record: dict[str, Any]) -> list[Name]:
    """Return the names in a line. Raises ValueError with the expected form."""
    table = arrays.table
    found: list[Name] = []
    key = bytes.fromhex(_text(record["key"])) if "key" in record else None
    if key is not None and len(key) != 16:
        raise ValueError("a key has 32 hex digits")
    if table in ("image", "target"):
        ids = record.get("ids", [record["id"]] if "id" in record else [])
        found = [_text(i) for i in ids]
        if key is not None:
            arrays.bound |= dict.fromkeys((_text(i) for i in ids), key)
    elif table == "text" and "text" in record:
        found = [_text(record["text"])]
    elif table == "query" and "session" in record:
        if type(record["turn"]) is not int or record["turn"] < 0:
            raise ValueError(f"turn {record['turn']!r} is no number of a turn (0: all captions as one text)")
        found = [(_text(record["session"]), record["turn"])]
    elif table == "query" and "reference" in record:
        found = [(_text(record["reference"]), _text(record["text"]))]
    if key is not None:
        found.append(key)
    if not found:
        raise ValueError(f"names no row of table '{table}'")
    return found


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f"{brief(value)} is no text")
    return value
