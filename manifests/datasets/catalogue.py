"""A catalog alone: images without sessions, to index, search and serve.

``path`` is one of

    a folder of images          ids are the paths below it, such as "tops/1.jpg"
    a .tar file of images       the same; several are a folder, with ids such as "000.tar/1.jpg"
    images.jsonl                {"id": "i1", "file": "tops/i1.jpg"} per line (see ``jsonl.py``)
    a .csv or .parquet file     one image per row; the columns are named by ``id_column``, ``path_column``,
                                ``caption_column`` and ``category_column``, and other columns are not read;
                                a Parquet file with the images themselves names them by ``image_column``

Files are below ``images``, by default the folder of ``path``. The gallery "all" contains every image; each value of
the category column is a further gallery.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field

from manifests.archives import compressed, without_columns
from manifests.datasets._files import option_folder, option_path, read_text
from manifests.datasets._images import ImageFolder, ImageOptions
from manifests.datasets.base import DatasetSource
from manifests.datasets.jsonl import NAME, ImageRecord, _files, _folder_name, _images
from manifests.errors import Problems, nearest
from manifests.schema import Dataset, Gallery, Image

EVERY = "all"  # the gallery of all images
ID = "id"  # default of ``id_column`` in a table
TABLES = (".csv", ".parquet")
Rows = list[tuple[int, dict[str, str]]]  # line or row number, values by column
Records = dict[str, tuple[int, ImageRecord]]


class Options(ImageOptions):
    """Paths are relative to the data folder, or absolute."""

    path: str
    images: str | None = None  # folder of the image files; default: ``path``, or the folder of that file
    label: str | None = Field(None, pattern=NAME)  # dataset name in stores; default: the name of ``path``
    path_column: str = "path"
    caption_column: str = "caption"
    category_column: str = "category"


class Catalogue(DatasetSource):
    title = "Catalog without sessions: a folder of images, images.jsonl, CSV or Parquet"
    Options = Options

    @classmethod
    def read(cls, options: BaseModel, data: Path, problems: Problems) -> Dataset | None:
        assert isinstance(options, Options)
        path = option_path(data, options.path, problems, "path")
        if path is None:
            return None
        if not path.exists():
            problems.add("key dataset.path", "no such file or folder", "check this key and --data", file=path)
            return None
        base = path if path.is_dir() else path.parent
        root = option_folder(data, options.images, problems, "images") if options.images else base
        if root is None:
            return None
        categories: dict[str, str] = {}
        notes: list[str] = []
        records = _records(path, options, problems, categories)
        if not records and not problems.found:
            problems.add("", "holds no image", "expected .jpg, .jpeg, .png or .webp files, or rows", file=path)
        root, files = _files(path, root, records, options, problems, notes)
        images = {i: Image(id=i, file=files.get(i, r.file), caption=r.caption) for i, (_, r) in records.items()}
        return Dataset(
            name=options.label or _folder_name(path.with_suffix("") if path.is_file() else path),
            images=images,
            sessions=(),
            galleries=tuple(_galleries(images, categories)),
            images_root=root if any(r.file for _, r in records.values()) else None,
            attributes={i: dict(r.attributes) for i, (_, r) in records.items() if r.attributes},
            notes=tuple(notes),
        )


def _records(path: Path, options: Options, problems: Problems, categories: dict[str, str]) -> Records:
    """Return image id -> (line, record), and fill ``categories`` (image id -> category)."""
    tar = path.is_file() and (path.suffix.lower() == ".tar" or compressed(path.name))
    if path.is_dir() or tar:
        folder = ImageFolder(path.parent if tar else path, options)
        files = [without_columns(file) for file in (folder.files_in(path.name) if tar else folder.files())]
        folder.report(problems)
        before = f"{path.name}/" if tar else ""
        return {
            f.removeprefix(before): (n, ImageRecord(id=f.removeprefix(before), file=f)) for n, f in enumerate(files, 1)
        }
    if path.suffix.lower() not in TABLES:
        return _images(path, problems)
    parquet = path.suffix.lower() == ".parquet"
    columns, rows = (_parquet if parquet else _csv)(path, options, problems)
    if problems.found:
        return {}
    id_column = options.id_column or ID
    if id_column not in columns:
        hint = f"set dataset.id_column; {nearest(id_column, columns)}"
        problems.add("", f"no column {id_column!r}", hint, file=path)
    held = parquet and options.image_column is not None  # the file holds the images
    if not held and not {options.path_column, options.caption_column} & set(columns):
        hint = f"set dataset.path_column; {nearest(options.path_column, columns)}"
        if parquet:
            hint += "; or set dataset.image_column, if a column holds the images"
        problems.add("", f"no column {options.path_column!r}", hint, file=path)
    found: Records = {}
    for number, row in rows if not problems.found else ():
        image, place = row.get(id_column, ""), f"{'row' if parquet else 'line'} {number}"
        if not image:
            problems.add(place, "no id", f"every row needs a value of {id_column!r}", file=path)
        elif image in found:
            problems.add(place, f"image {image!r} is also on {found[image][0]}", "ids must be unique", file=path)
        else:
            file, caption = row.get(options.path_column) or None, row.get(options.caption_column) or None
            file = f"{path.name}/{image}" if held else file
            found[image] = (number, ImageRecord(id=image, file=file, caption=caption))
            if category := row.get(options.category_column):
                categories[image] = category
    return found


def _csv(path: Path, options: Options, problems: Problems) -> tuple[list[str], Rows]:
    """Read a CSV file with a header line, separated by commas, semicolons or tabs."""
    text = read_text(path, problems)
    if text is None:
        return [], []
    header = text.partition("\n")[0]
    separator = max(",;\t", key=header.count)
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
        columns = [name.strip() for name in reader.fieldnames or ()]
        reader.fieldnames = columns
        rows = [(reader.line_num, {k: v.strip() for k, v in row.items() if k and isinstance(v, str)}) for row in reader]
    except csv.Error as error:
        problems.add("", f"not a CSV file: {error}", "write it with a header line and quoted texts", file=path)
        return [], []
    if not columns:
        problems.add("", "is empty", "expected a header line and one row per image", file=path)
    return columns, rows


def _parquet(path: Path, options: Options, problems: Problems) -> tuple[list[str], Rows]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        fix = "python -m pip install 'fashion-ntm[parquet]', or write a .csv file"
        problems.add("", "Parquet needs the package pyarrow", fix, file=path)
        return [], []
    wanted = (options.id_column or ID, options.path_column, options.caption_column, options.category_column)
    try:
        columns = list(parquet.read_schema(path).names)
        table = parquet.read_table(path, columns=[name for name in wanted if name in columns])
    except (ArrowException, OSError) as error:
        problems.add("", f"not a Parquet file: {str(error)[:200]}", file=path)
        return [], []
    values = [(name, table.column(name).to_pylist()) for name in table.column_names]
    return columns, [(n + 1, {name: _text(v[n]) for name, v in values}) for n in range(table.num_rows)]


def _text(value: Any) -> str:
    return "" if value is None else str(value).strip()


def _galleries(images: Iterable[str], categories: dict[str, str]) -> list[Gallery]:
    members: dict[str, list[str]] = {EVERY: list(images)}
    for image, category in categories.items():
        if category != EVERY:
            members.setdefault(category, []).append(image)
    return [Gallery(category=name, split="test", images=tuple(ids)) for name, ids in members.items()]
