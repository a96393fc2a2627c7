"""Tables of plain text and Markdown with aligned columns, and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def padded(rows: Sequence[Sequence[str]], left: int = 1, least: int = 0) -> list[list[str]]:
    """Return ``rows`` with the cells of each column padded to one width of at least ``least`` characters.

    The first ``left`` columns are aligned to the left, the others to the right. All rows have the same length.
    """
    widths = [max(least, *(len(row[n]) for row in rows)) for n in range(len(rows[0]))]
    return [
        [cell.ljust(w) if n < left else cell.rjust(w) for n, (cell, w) in enumerate(zip(row, widths, strict=True))]
        for row in rows
    ]


def aligned(rows: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """Return one line per row, columns separated by two spaces."""
    return ["  ".join(row).rstrip() for row in padded(rows, left)]


def markdown(rows: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """Return the lines of a Markdown table whose header is the first row."""
    cells = padded(rows, left, least=3)
    rule = ["-" * (len(cell) + 2) if n < left else "-" * (len(cell) + 1) + ":" for n, cell in enumerate(cells[0])]
    lines = ["| " + " | ".join(row) + " |" for row in cells]
    return [lines[0], "|" + "|".join(rule) + "|", *lines[1:]]


def csv_text(fields: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    """Return CSV with a header line; the items of a list or tuple are separated by spaces."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fields, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({k: " ".join(map(str, v)) if isinstance(v, list | tuple) else v for k, v in row.items()})
    return text.getvalue()
