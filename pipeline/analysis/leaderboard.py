"""``table leaderboard``: every method on clean splits, best first, each tested against the first; files to publish."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from cache.files import replace_atomically
from manifests.errors import IncompleteError, ManifestError, Problem
from manifests.load import load_dataset
from manifests.protocols import RULES, sessions_digest
from manifests.schema import Dataset, RunSpec
from manifests.table_spec import ColumnGroup, Leaderboard, ResultsTable, RowSpec, Section
from manifests.views import WHOLE
from pipeline.analysis.cells import Row, Table
from pipeline.analysis.own_tables import model_rows, with_ranked_rows, with_ranked_runs
from pipeline.analysis.render import render
from pipeline.analysis.results_table import CHANCE, build_results_table
from pipeline.analysis.tables import RunFinder, TableRequest
from pipeline.core.workspace import Workspace
from pipeline.evaluation.files import ResultFiles
from pipeline.jobs.managed_runs import run_named
from pipeline.jobs.ranked import RankedFolder
from pipeline.training.models import model_names
from pipeline.training.runs import RunFolder

FORMS = ("md", "json")


@dataclass(frozen=True)
class FilledSection:
    """A section with its table. ``digest``: of the split's sessions; "" for a dataset that is not in the data folder."""

    section: Section
    digest: str
    table: Table


def build_leaderboard(board: Leaderboard, request: TableRequest, runs: Sequence[str] = ()) -> list[FilledSection]:
    """Fill the leaderboard with the evaluated runs of each section's spec.

    ``request.ranked``: names of ranked lists, and ``runs``: ids or folders of runs; each adds a row to the sections whose
    split it was evaluated on. Raises ManifestError for a run or list that no section has.
    """
    folders = {name: run_named(name, request.out / "runs") for name in runs}
    used: set[str] = set()
    sections = [_section(board, section, request, folders, used) for section in board.sections]
    for name in (*folders, *request.ranked):
        if name not in used:
            what = "is evaluated on none of the leaderboard's splits, or on other features than their run specs'"
            fix = "evaluate it with --set dataset.protocol=..., or add its ranked lists (docs/leakage.md)"
            raise ManifestError([Problem("leaderboard", name, what, fix)])
    return sections


def _section(
    board: Leaderboard, section: Section, request: TableRequest, folders: Mapping[str, RunFolder], used: set[str]
) -> FilledSection:
    overrides = (*section.overrides, *request.overrides)
    spec = replace(request, spec="", overrides=overrides).run_spec(section.run)
    workspace = Workspace(request.out)
    try:
        dataset = load_dataset(spec, request.data)
    except ManifestError:
        dataset = None  # not downloaded: the section stays empty
    table = _table(board, section, spec)
    finder = RunFinder(spec, request.data, workspace, table, request.seeds)
    ranked = [] if dataset is None else [n for n in request.ranked if _is_scored(n, dataset, workspace)]
    own = {name: found for name, folder in folders.items() if (found := _summary(finder, folder)) is not None}
    used |= {*ranked, *own}
    more = tuple(RowSpec(model=name, label=_label(folders[name]), group="Runs", deterministic=True) for name in own)
    table = with_ranked_rows(table.model_copy(update={"rows": (*table.rows, *more)}), ranked)

    def find(row: RowSpec, seeds: Sequence[int]) -> Sequence[dict[str, Any]]:
        return [own[row.model]] if row.model in own else finder(row, seeds)

    lookup = with_ranked_runs(find, ranked, dataset, workspace, table) if ranked and dataset is not None else find
    seeds = request.seeds or board.seeds
    filled = partial(build_results_table, find_runs=lookup, known=model_names(), run=spec.asked, seeds=seeds)
    made = filled(table)
    order = _order(made, board, len(table.rows))
    if made.blocks[0].rows[order[0]].cells[0].value is not None:
        rows = tuple(table.rows[n] for n in order)
        best = {"rows": rows, "tested": rows[0].name, "tested_metric": board.ranked_by}
        made = filled(table.model_copy(update=best))
    # a run on another split is no stale run of this one, so single runs are not listed
    notes = dict.fromkeys([*finder.shown, *(finder.stale if finder.experiment is None else ())])
    made = made.model_copy(update={"footnotes": (*made.footnotes, *notes)})
    return FilledSection(section, "" if dataset is None else sessions_digest(dataset.sessions), made)


def _table(board: Leaderboard, section: Section, spec: RunSpec) -> ResultsTable:
    """Return an unfilled table with one row per model of the spec; its ``tested`` row is not known yet."""
    notes = (f"Split {section.protocol}: {RULES[section.protocol]}",) if section.protocol else ()
    return ResultsTable(
        kind="results",
        title=section.label,
        run=section.run,
        columns=(ColumnGroup(category="overall", label="", metrics=board.metrics),),
        seeds=board.seeds,
        rows=model_rows(dict.fromkeys((*spec.models, *board.presets))),
        notes=notes,
    )


def _order(table: Table, board: Leaderboard, rows: int) -> list[int]:
    """Return the numbers of the first ``rows`` rows, best first; those without a value last, in the spec's order."""
    place = board.metrics.index(board.ranked_by)
    values = [row.cells[place].value for row in table.blocks[0].rows[:rows]]
    return sorted(range(len(values)), key=lambda n: (values[n] is None, -(values[n] or 0), n))


def _is_scored(name: str, dataset: Dataset, workspace: Workspace) -> bool:
    try:
        return bool(RankedFolder.of(workspace, dataset, name).load(dataset, WHOLE))
    except IncompleteError:
        return False


def _summary(finder: RunFinder, folder: RunFolder) -> dict[str, Any] | None:
    """Return the current evaluation in a run's folder, which may be outside of OUT, on the section's split, or None."""
    if finder.experiment is None:
        return None
    if (run := finder.experiment.run_of(folder.record().get("identity", {}))) is None:
        return None
    own = finder.experiment.result_files(run)
    files = ResultFiles(folder.path, folder.path / own.folder.relative_to(own.run))
    found = files.load(finder.experiment.evaluation_identity(run))
    return None if found is None else {**found, "results": str(files.results)}


def _label(folder: RunFolder) -> str:
    """Return e.g. ``cm_ntm (stages 2, hidden 256), run 1f3a5b7c``."""
    model = folder.record()["identity"]["model"]
    shown = ", ".join(f"{key} {value}" for key, value in model["options"].items())
    return f"{model['name']}{f' ({shown})' if shown else ''}, run {folder.id[:8]}"


def leaderboard_text(board: Leaderboard, sections: Sequence[FilledSection], form: str) -> str:
    """Return the leaderboard as Markdown or JSON. Raises ManifestError for another format."""
    if form == "json":
        about = {"title": board.title, "notes": board.notes, "ranked_by": board.ranked_by}
        values = {**about, "sections": [_section_values(s) for s in sections]}
        return json.dumps(values, indent=1, ensure_ascii=False) + "\n"
    if form != "md":
        raise ManifestError([Problem("--format", form, "a leaderboard has no such format", f"use {', '.join(FORMS)}")])
    parts = [f"# {board.title}\n", *(f"{note}\n" for note in board.notes)]
    for s in sections:
        split = f"Sessions of the split: SHA-256 {s.digest[:16]}." if s.digest else "The dataset is not here."
        _, _, table = render(s.table, "md").partition("\n\n")  # its title is the section's label
        parts.append(f"## {s.section.label}\n\n{split}\n\n{table}")
    return "\n".join(parts)


def _section_values(filled: FilledSection) -> dict[str, Any]:
    """Return a section for JSON. ``rows``: best first; ``chance``: the values of a random order."""
    section, table = filled.section, filled.table
    (block,) = table.blocks
    rows = [_row(row, table) for row in block.rows]
    return {
        "label": section.label,
        "run": Path(section.run).name,
        "protocol": section.protocol,
        "rule": RULES[section.protocol] if section.protocol else "",
        "sessions_digest": filled.digest,
        "block": block.title,
        "rows": [row for row in rows if row["method"] != CHANCE],
        "chance": next((row["values"] for row in rows if row["method"] == CHANCE), {}),
        "tests": table.tests,
        "statements": [statement.model_dump(mode="json") for statement in table.statements],
        "notes": [*table.footnotes, *table.notes],
    }


def _row(row: Row, table: Table) -> dict[str, Any]:
    """Return a method's seeds, runs, store and values (percent; mean, std over seeds, 95% interval over sessions)."""
    first, keys = row.cells[0], ("value", "std", "low", "high")
    values = {
        column.label: {key: value for key in keys if (value := getattr(cell, key)) is not None}
        for column, cell in zip(table.columns, row.cells, strict=True)
    }
    found = {"method": row.label, "seeds": first.seeds, "runs": first.runs, "store": first.store, "values": values}
    return found | ({"command": first.command} if first.command else {})


def _published(filled: FilledSection) -> FilledSection:
    """Return a section with commands that name no folder of this machine."""
    table = filled.table
    blocks = [b.model_copy(update={"rows": tuple(_public_row(row) for row in b.rows)}) for b in table.blocks]
    notes = tuple(note for note in table.footnotes if "run `" not in note)  # commands of this machine
    return replace(filled, table=table.model_copy(update={"blocks": tuple(blocks), "footnotes": notes}))


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


def write_leaderboard(board: Leaderboard, sections: Sequence[FilledSection], folder: Path) -> list[Path]:
    """Write leaderboard.md and leaderboard.json, to be published; return the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    public, paths = [_published(s) for s in sections], [folder / f"leaderboard.{form}" for form in FORMS]
    for path in paths:
        replace_atomically(path, leaderboard_text(board, public, path.suffix[1:]).encode())
    return paths
