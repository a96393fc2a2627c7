"""Rendering of a ``Table`` as text for a terminal, Markdown, LaTeX (booktabs), CSV or JSON."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from itertools import groupby
from typing import Any, Literal

from manifests.errors import ManifestError, Problem, nearest
from pipeline.analysis.cells import Block, Cell, Column, Row, Table
from pipeline.core.text_table import csv_text, markdown

Format = Literal["md", "latex", "csv", "json"]
EMPTY = "–"
PAPER = "paper"
CSV_FIELDS = (
    *("block", "row_group", "row", "column_group", "column", "unit"),
    *("value", "std", "low", "high", "seeds", "paper", "difference", "runs", "store", "command", "note"),
)


def render(table: Table, form: str) -> str:
    """Return the table as text ending in a newline. Raises ManifestError for an unknown format."""
    if form not in FORMATS:
        raise ManifestError([Problem("--format", form, "no such format", nearest(form, FORMATS))])
    return FORMATS[form](table)


def value_text(cell: Cell, column: Column) -> str:
    """Format a cell: ``32.7 ± 0.4``, ``32.7`` for one seed, ``6,897`` for a count, a dash if empty."""
    if cell.value is None:
        return EMPTY
    if column.kind == "count":
        return f"{cell.value:,.0f}"
    if column.kind == "change":
        return f"{cell.value:+z.1f}"
    return f"{cell.value:.1f}" + (f" ± {cell.std:.1f}" if cell.std is not None else "")


def paper_text(cell: Cell, column: Column) -> str:
    """Format the paper's value and the difference: ``47.4 (-14.7)``; a matching count: ``6,897 ✓``."""
    if cell.paper is None:
        return ""
    if column.kind == "count":
        mark = "" if cell.difference is None else " ✓" if cell.difference == 0 else f" ({cell.difference:+,.0f})"
        return f"{cell.paper:,.0f}{mark}"
    printed = f"{cell.paper:+.1f}" if column.kind == "change" else f"{cell.paper:.1f}"
    return printed + (f" ({cell.difference:+z.1f})" if cell.difference is not None else "")


def lines_of(block: Block, columns: tuple[Column, ...]) -> Iterator[tuple[Row, bool, list[str]]]:
    """Yield each line of a block as (row, whether it is the paper's line, cell texts)."""
    for row in block.rows:
        cells = list(zip(row.cells, columns, strict=True))
        yield row, False, [value_text(*pair) for pair in cells]
        if any(cell.paper is not None for cell in row.cells):
            yield row, True, [paper_text(*pair) for pair in cells]


def to_markdown(table: Table) -> str:
    """Return a GitHub table with aligned columns, followed by footnotes, runs, and commands for empty cells."""
    header = ["", *(" ".join(filter(None, [c.group, c.label])) for c in table.columns)]
    body: list[list[str]] = []
    for block in table.blocks:
        body.append([f"**{_md(block.title)}**", *[""] * len(table.columns)])
        for row, paper, texts in lines_of(block, table.columns):
            body.append([f"*{PAPER}*" if paper else _md(row.label), *map(_md, texts)])
    parts = [f"**{_md(table.title)}**", "\n".join(markdown([header, *body]))]
    parts += _listed([*table.footnotes, *table.notes], _md)
    parts += _listed(table.significance, _md, "Significance:")
    parts += _listed(table.traces, _md, "Runs:")
    parts += _listed([f"{label}: `{command}`" for command, label in table.commands.items()], str, "To fill:")
    return "\n\n".join(parts) + "\n"


def _md(text: str) -> str:
    return re.sub(r"([|*_`<>\\])", r"\\\1", text)


def _listed(items: list[str], escape: Callable[[str], str], heading: str = "") -> list[str]:
    return [heading] * bool(heading) + ["\n".join(f"- {escape(item)}" for item in items)] if items else []


_NAMED = {"<": "less", ">": "greater", "|": "bar", "\\": "backslash", "~": "asciitilde", "^": "asciicircum"}
_LATEX = {character: "\\" + character for character in "&%$#_{}"}
_LATEX |= {character: rf"\text{name}{{}}" for character, name in _NAMED.items()}
_LATEX |= {'"': "''", "±": r"$\pm$", "✓": "$=$", "–": "--", "α": r"$\alpha$"}


def latex_text(text: str) -> str:
    """Escape text for LaTeX; a hyphen before a number becomes a minus sign."""
    escaped = "".join(_LATEX.get(character, character) for character in text)
    return re.sub(r"(?<=\()-(?=\d)|^-(?=\d)|(?<= )-(?= ?\d)", "$-$", escaped)


def to_latex(table: Table) -> str:
    """Return a ``table`` environment for ``\\usepackage{booktabs}``; runs and commands follow as comments."""
    width = len(table.columns) + 1
    spans, rules, at = [], [], 2
    for group, members in groupby(table.columns, key=lambda c: c.group):
        count = len(list(members))
        spans.append(rf"\multicolumn{{{count}}}{{c}}{{{latex_text(group)}}}")
        if group:
            rules.append(rf"\cmidrule(lr){{{at}-{at + count - 1}}}")
        at += count
    out = ["% needs \\usepackage{booktabs}", r"\begin{table}", r"\centering", rf"\caption{{{latex_text(table.title)}}}"]
    out += [rf"\begin{{tabular}}{{l{'r' * len(table.columns)}}}", r"\toprule"]
    out += [" & ".join(["", *spans]) + r" \\", "".join(rules)] if rules else []
    out.append(" & ".join(["", *(latex_text(c.label) for c in table.columns)]) + r" \\")
    for block in table.blocks:
        out += [r"\midrule", rf"\multicolumn{{{width}}}{{l}}{{\textit{{{latex_text(block.title)}}}}} \\"]
        before = None
        for row, paper, texts in lines_of(block, table.columns):
            if before is not None and row.group != before:
                out.append(r"\addlinespace")
            before = row.group
            label = rf"\quad {PAPER}" if paper else latex_text(row.label)
            out.append(" & ".join([label, *map(latex_text, texts)]) + r" \\")
    out += [r"\bottomrule", r"\end{tabular}"]
    if notes := [*table.footnotes, *table.notes, *table.significance]:
        out += ["", r"\medskip", r"\begin{minipage}{\linewidth}\footnotesize"]
        out += [latex_text(note) + r"\par" for note in notes] + [r"\end{minipage}"]
    out.append(r"\end{table}")
    comments = [f"runs: {trace}" for trace in table.traces]
    comments += [f"to fill {label}: {command}" for command, label in table.commands.items()]
    out += [f"% {' '.join(comment.split())}" for comment in comments]
    return "\n".join(out) + "\n"


def to_csv(table: Table) -> str:
    """Return CSV with one line per cell and all of its fields at full precision; list items are separated by spaces."""

    def line(block: Block, row: Row, cell: Cell, column: Column) -> dict[str, Any]:
        place = {"block": block.title, "row_group": row.group, "row": row.label, "column_group": column.group}
        return {**cell.model_dump(), **place, "column": column.label, "unit": column.kind}

    paired = ((b, row, zip(row.cells, table.columns, strict=True)) for b in table.blocks for row in b.rows)
    cells = ((block, row, *pair) for block, row, pairs in paired for pair in pairs)
    return csv_text(CSV_FIELDS, (line(*cell) for cell in cells))


FORMATS: dict[str, Callable[[Table], str]] = {
    "md": to_markdown,
    "latex": to_latex,
    "csv": to_csv,
    "json": lambda table: table.model_dump_json(indent=2) + "\n",
}


_GAP = 2  # spaces between columns


def to_text(table: Table, width: int = 100) -> str:
    """Return the table for a terminal of ``width`` columns; columns that do not fit follow below.

    Numbers are never truncated or omitted: if a single column is too wide, the line exceeds ``width``.
    """
    bodies = [(block.title, list(lines_of(block, table.columns))) for block in table.blocks]
    texts = [texts for _, body in bodies for _, _, texts in body]
    widths = [max(len(t) for t in [c.label, *(line[n] for line in texts)]) for n, c in enumerate(table.columns)]
    first = max((len(row.label) + 4 for _, body in bodies for row, _, _ in body), default=0)
    out = [table.title]
    for part in _parts(table.columns, widths, width - first):
        out += ["", *_header(table.columns, widths, part, first)]
        for title, body in bodies:
            out += ["─" * (first + sum(widths[n] + _GAP for n in part)), title]
            for row, paper, cells in body:
                label = f"    {PAPER}" if paper else f"  {row.label}"
                line = label.ljust(first) + "".join(" " * _GAP + cells[n].rjust(widths[n]) for n in part)
                out += [line.rstrip()] if not paper or any(cells[n] for n in part) else []
    out += ["", *table.footnotes, *table.notes]
    out += ["", "Significance:", *(f"  {line}" for line in table.significance)] if table.significance else []
    fill = [f"  {label}: {command}" for command, label in table.commands.items()]
    return "\n".join([*out, *(["To fill:", *fill] if fill else [])]) + "\n"


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
