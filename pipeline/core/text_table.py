"""Tables of plain text and Markdown with aligned columns."""

from __future__ import annotations

from collections.abc import Sequence


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
