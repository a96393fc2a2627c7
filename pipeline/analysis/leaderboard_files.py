"""A filled leaderboard as Markdown and JSON, in a form to publish: commands name no folder of this machine."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

from cache.files import replace_atomically
from manifests.errors import ManifestError, Problem
from manifests.protocols import RULES
from pipeline.analysis.cells import Row, Table
from pipeline.analysis.leaderboard import FilledLeaderboard, FilledSection
from pipeline.analysis.render import render
from pipeline.analysis.results_table import CHANCE

FORMS = ("md", "json")


def leaderboard_text(board: FilledLeaderboard, form: str) -> str:
    """Return the leaderboard as Markdown or JSON. Raises ManifestError for another format."""
    if form == "json":
        sections = [_section(s) for s in board.sections]
        about = {"title": board.spec.title, "notes": board.spec.notes, "ranked_by": board.spec.ranked_by}
        return json.dumps({**about, "sections": sections}, indent=1, ensure_ascii=False) + "\n"
    if form != "md":
        raise ManifestError([Problem("--format", form, "a leaderboard has no such format", f"use {', '.join(FORMS)}")])
    parts = [f"# {board.spec.title}\n", *(f"{note}\n" for note in board.spec.notes)]
    for s in board.sections:
        split = f"Sessions of the split: SHA-256 {s.digest[:16]}." if s.digest else "The dataset is not here."
        _, _, table = render(s.table, "md").partition("\n\n")  # its title is the section's label
        parts.append(f"## {s.section.label}\n\n{split}\n\n{table}")
    return "\n".join(parts)


def _section(filled: FilledSection) -> dict[str, Any]:
    """Return a section for JSON. ``rows``: best first; ``chance``: the values of a random order."""
    section, table = filled.section, filled.table
    (block,) = table.blocks
    rows, rule = [_row(row, table) for row in block.rows], RULES[section.protocol] if section.protocol else ""
    about = {"label": section.label, "run": Path(section.run).name, "protocol": section.protocol, "rule": rule}
    about |= {"sessions_digest": filled.digest, "block": block.title}
    chance: dict[str, Any] = next((row["values"] for row in rows if row["method"] == CHANCE), {})
    values = {"rows": [row for row in rows if row["method"] != CHANCE], "chance": chance, "tests": table.tests}
    statements = [statement.model_dump(mode="json") for statement in table.statements]
    return {**about, **values, "statements": statements, "notes": [*table.footnotes, *table.notes]}


def _row(row: Row, table: Table) -> dict[str, Any]:
    """Return a method's seeds, runs, store and values (percent; mean, std over seeds, 95% interval over sessions)."""
    first, keys = row.cells[0], ("value", "std", "low", "high")
    values = {
        column.label: {key: value for key in keys if (value := getattr(cell, key)) is not None}
        for column, cell in zip(table.columns, row.cells, strict=True)
    }
    found = {"method": row.label, "seeds": first.seeds, "runs": first.runs, "store": first.store, "values": values}
    return found | ({"command": first.command} if first.command else {})


def published(board: FilledLeaderboard) -> FilledLeaderboard:
    """Return the leaderboard with commands that name no folder of this machine."""
    sections = []
    for s in board.sections:
        blocks = [b.model_copy(update={"rows": tuple(_public_row(row) for row in b.rows)}) for b in s.table.blocks]
        notes = tuple(note for note in s.table.footnotes if "run `" not in note)  # commands of this machine
        table = s.table.model_copy(update={"blocks": tuple(blocks), "footnotes": notes})
        sections.append(FilledSection(s.section, s.digest, table))
    return FilledLeaderboard(board.spec, tuple(sections))


def _public_row(row: Row) -> Row:
    cells = tuple(cell.model_copy(update={"command": public_command(cell.command)}) for cell in row.cells)
    return row.model_copy(update={"cells": cells})


def public_command(command: str) -> str:
    """Return a command without local folders: no ``--out``, DIR for other absolute paths, a spec by its file name."""
    words: list[str] = []
    given = iter(shlex.split(command))
    for word in given:
        if word == "--out":
            next(given, "")
        elif word == "--data":
            words += [word, "DIR" if next(given, "") else ""]
        elif Path(word).is_absolute():  # a spec
            words.append(Path(word).name)
        else:
            key, equals, value = word.rpartition("=")
            words.append(f"{key}{equals}DIR" if Path(value).is_absolute() else word)
    return shlex.join(words)


def write_leaderboard(board: FilledLeaderboard, folder: Path) -> list[Path]:
    """Write leaderboard.md and leaderboard.json, to be published; return the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    board, paths = published(board), [folder / f"leaderboard.{form}" for form in FORMS]
    for path in paths:
        replace_atomically(path, leaderboard_text(board, path.suffix[1:]).encode())
    return paths
