"""Reader of a folder of user-provided feature arrays with row names: checks everything, matches rows to a dataset.

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
from manifests.identity import pair_key, text_key
from manifests.kinds import NUMPY, SAFETENSORS, kind_of
from manifests.schema import Dataset
from manifests.text import brief, decode_text, on_one_line, parse_json, read_bounded

SETS = ({"query", "target"}, {"image", "text"})
_KIND = {"F16": "<f2", "F32": "<f4"}
_BLOCK = 8192
_SHOWN = 5  # names in a message
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
        problems.add("", f"cannot be read: {on_one_line(error)}", "", file)
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


class Lookup:
    """Row numbers of a folder's arrays, by table, for a dataset's images and queries; -1 if absent."""

    def __init__(self, tables: dict[str, TableArrays], dataset: Dataset):
        self.tables, self.dataset = tables, dataset
        self.conflicts: list[str] = []
        self._by_turn = self._turns()

    def image(self, table: str, image: str) -> int:
        return self.tables[table].rows_by_name.get(image, -1)

    def pair(self, image: str, text: str) -> int:
        """Return the row of a query by reference and text, else by session and turn, else by exported content key."""
        rows, bound = self.tables["query"].rows_by_name, self.tables["target"].bound
        found = rows.get((image, text), self._by_turn.get((image, text), -1))
        if found < 0 and image in bound:
            found = rows.get(pair_key(bound[image], text_key(text)), -1)
        return found

    def _turns(self) -> dict[Pair, int]:
        """Rows named by session and turn, by (image, text) pair. Different rows for one pair are a conflict: a
        single-turn model gives each pair one row."""
        found: dict[Pair, int] = {}
        if (arrays := self.tables.get("query")) is None:
            return found
        for session in self.dataset.sessions:
            for image, text, turn in session.queries():
                row = arrays.rows_by_name.get((session.id, turn), -1)
                first = found.setdefault((image, text), row)
                if first < 0:
                    found[image, text] = row
                elif row >= 0 and row != first and not np.array_equal(arrays.features[row], arrays.features[first]):
                    what = f"{arrays.labels[first]} and {arrays.labels[row]} ask the same"
                    self.conflicts.append(f"{what}, ({image!r}, {text[:60]!r}), and their rows differ")
        return {pair: row for pair, row in found.items() if row >= 0}


@dataclass
class Fit:
    """Result of matching arrays to a dataset. Lists of names: ``unknown`` rows that the dataset does not use, by table;
    ``missing`` rows that it needs; ``conflicts`` between rows of one query."""

    rows: dict[str, int] = field(default_factory=dict)
    unknown: dict[str, list[str]] = field(default_factory=dict)
    missing: dict[str, list[str]] = field(default_factory=dict)
    conflicts: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        lines = []
        kinds = (("missing: the dataset asks for", self.missing), ("unknown: the dataset has no", self.unknown))
        for words, table, names in ((words, *part) for words, found in kinds for part in found.items() if part[1]):
            more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
            lines.append(f"table '{table}', {len(names):,} rows {words} {', '.join(names[:_SHOWN])}{more}")
        return [*lines, *self.conflicts[:_SHOWN]]


def fit(tables: dict[str, TableArrays], dataset: Dataset, concatenated: bool) -> Fit:
    """Match the arrays to all rows that stage 2 needs. ``concatenated``: including ST + cat's queries."""
    lookup = Lookup(tables, dataset)
    done = Fit({name: t.rows for name, t in tables.items()}, conflicts=lookup.conflicts)
    for table, arrays in tables.items():
        if table in ("image", "target"):
            asked = {repr(image): lookup.image(table, image) for image in dataset.images}
        elif table == "text":
            asked = {repr(text): arrays.text_row(text) for _, text in dataset.queries()}
        else:
            asked = {repr(pair): lookup.pair(*pair) for pair in dataset.queries()}
            if not concatenated:
                turns = {repr((t.reference, t.text)) for s in dataset.sessions for t in s.turns}
                asked = {name: row for name, row in asked.items() if name in turns or row >= 0}
        done.missing[table] = [name for name, row in asked.items() if row < 0]
        used = np.zeros(arrays.rows, dtype=bool)
        used[[row for row in asked.values() if row >= 0]] = True
        if table == "query":  # rows of turns with equal queries are all used
            known = {session.id for session in dataset.sessions}
            for name, row in arrays.rows_by_name.items():
                used[row] |= isinstance(name, tuple) and isinstance(name[1], int) and name[0] in known
        done.unknown[table] = [arrays.labels[n] for n in np.flatnonzero(~used)]
    return done
