"""Plain-text rendering of a ``Table`` for a terminal."""

from __future__ import annotations

from itertools import groupby

from pipeline.analysis.cells import Column, Table
from pipeline.analysis.render import PAPER, lines_of

_GAP = 2  # spaces between columns


def terminal_lines(table: Table, width: int) -> list[tuple[str, str]]:
    """Return (line, rich style) for a terminal of ``width`` columns; columns that do not fit follow below.

    Numbers are never truncated or omitted: if a single column is too wide, the line exceeds ``width``.
    """
    bodies = [(block.title, list(lines_of(block, table.columns))) for block in table.blocks]
    texts = [texts for _, body in bodies for _, _, texts in body]
    widths = [max(len(t) for t in [c.label, *(line[n] for line in texts)]) for n, c in enumerate(table.columns)]
    first = max((len(row.label) + 4 for _, body in bodies for row, _, _ in body), default=0)
    out = [(table.title, "bold")]
    for part in _parts(table.columns, widths, width - first):
        out += [("", ""), *((line, "bold") for line in _header(table.columns, widths, part, first))]
        total = first + sum(widths[n] + _GAP for n in part)
        for title, body in bodies:
            out += [("─" * total, "dim"), (title, "bold")]
            for row, paper, cells in body:
                label = f"    {PAPER}" if paper else f"  {row.label}"
                line = label.ljust(first) + "".join(" " * _GAP + cells[n].rjust(widths[n]) for n in part)
                if not paper or any(cells[n] for n in part):
                    out.append((line.rstrip(), "dim" if paper else ""))
    fill = [f"  {label}: {command}" for command, label in table.commands.items()]
    out += [("", ""), *((note, "dim") for note in [*table.footnotes, *table.notes])]
    if table.significance:
        out += [("", ""), ("Significance:", ""), *((f"  {line}", "dim") for line in table.significance)]
    return [*out, *((line, "") for line in (["To fill:", *fill] if fill else []))]


def _parts(columns: tuple[Column, ...], widths: list[int], room: int) -> list[list[int]]:
    """Return column indices in parts that fit into ``room``, in order; a group stays together if it fits."""
    parts: list[list[int]] = [[]]
    for _, members in groupby(range(len(columns)), key=lambda n: columns[n].group):
        group = list(members)
        together = sum(widths[n] + _GAP for n in [*parts[-1], *group]) <= room
        if parts[-1] and not together:
            parts.append([])
        for n in group:
            if parts[-1] and sum(widths[m] + _GAP for m in [*parts[-1], n]) > room:
                parts.append([])
            parts[-1].append(n)
    return parts


def _header(columns: tuple[Column, ...], widths: list[int], part: list[int], first: int) -> list[str]:
    groups = ""
    for group, members in groupby(part, key=lambda n: columns[n].group):
        groups += " " * _GAP + group.center(sum(widths[n] + _GAP for n in members) - _GAP)
    labels = "".join(" " * _GAP + columns[n].label.rjust(widths[n]) for n in part)
    return [(" " * first + line).rstrip() for line in (groups, labels) if line.strip()]


def to_text(table: Table, width: int = 100) -> str:
    return "\n".join(line for line, _ in terminal_lines(table, width)) + "\n"
