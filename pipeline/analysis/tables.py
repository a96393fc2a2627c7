"""The paper's tables: of datasets, counted, and of the existing runs, which are matched by configuration."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from manifests.ablation_spec import AblationSpec, load_ablation_spec
from manifests.commandline import command_line, repeated_options
from manifests.errors import IncompleteError
from manifests.leaks import subset_ids
from manifests.load import load_dataset, load_spec
from manifests.presets import presets
from manifests.schema import Component, Dataset, RunSpec
from manifests.table_spec import DatasetTable, ResultsTable, RowSpec, load_table_spec
from manifests.views import View
from pipeline.analysis.cells import Block, Cell, Column, Row, Table, paper_notes, seed_text
from pipeline.analysis.own_tables import ablation_table, kind_of_table, own_table, with_ranked_rows, with_ranked_runs
from pipeline.analysis.results_table import Fill, FindRuns, build_results_table
from pipeline.analysis.tuning.trials import read_spec
from pipeline.core.binding import StaleError
from pipeline.core.workspace import Workspace
from pipeline.jobs.experiment import Experiment
from pipeline.jobs.identities import make_run
from pipeline.jobs.specs import require_sessions
from pipeline.training.models import model_class, model_names

EQUAL = "✓: equal to the paper."
READ = command_line("table", "1", "--data", "DIR")
NO_EXTRACTOR = Component(name="none")  # a table of datasets reads no feature


@dataclass(frozen=True)
class TableRequest:
    """A table by name, and what fills it. ``name``: a shipped table, or a table, ablation or run spec.

    ``spec``: a run spec; "": the table's own. ``seeds``; empty: all there are. ``ranked``: names of scored ranked lists.
    ``variant``: label of the ablation's variant, for printed commands.
    """

    name: str
    data: Path
    out: Path
    spec: str = ""
    overrides: Sequence[str] = ()
    seeds: Sequence[int] = ()
    ranked: Sequence[str] = ()
    variant: str = ""

    @property
    def options(self) -> list[str]:
        return repeated_options(self.overrides, self.data, self.out)

    def run_spec(self, default: str) -> RunSpec:
        name = self.spec or default
        return read_spec(name, self.overrides, shlex.join([name, *self.options]))


def build_table(request: TableRequest) -> Table:
    """Return the table, filled with the matching runs or counts of datasets; absent datasets leave empty cells."""
    if (kind := kind_of_table(request.name)) != "table":
        return _own(request, kind)
    table = load_table_spec(request.name)
    if isinstance(table, DatasetTable):
        return build_dataset_table(table, _present(table, request.data))
    assert isinstance(table, ResultsTable)
    spec = request.run_spec(table.run)
    return fill(filled_from(table, spec, request.spec), spec, request)


def _own(request: TableRequest, kind: str) -> Table:
    """Return the table of a run spec's own models, or of an ablation's own grid."""
    if kind == "ablation":
        ablation = load_ablation_spec(request.name)
        return table_of_ablation(ablation, request.run_spec(ablation.run), request)
    spec = replace(request, spec="").run_spec(request.name)
    dataset = load_dataset(spec, request.data)
    require_sessions(spec, dataset)
    return fill(own_table(spec, dataset, subset_ids(dataset)), spec, request)


def table_of_ablation(ablation: AblationSpec, spec: RunSpec, request: TableRequest) -> Table:
    """Return the table of an ablation's own grid, filled with the runs of ``spec``."""
    dataset = load_dataset(spec, request.data)
    return fill(ablation_table(ablation, dataset, subset_ids(dataset)), spec, request)


def fill(table: ResultsTable, spec: RunSpec, request: TableRequest, experiment: Experiment | None = None) -> Table:
    """Fill the table with the runs of ``spec`` (``experiment``: its, if loaded), or with commands that fill cells."""
    table = with_ranked_rows(table, request.ranked)
    lookup: FindRuns
    lookup = finder = RunFinder(spec, request.data, Workspace(request.out), table, request.seeds)
    if experiment is not None:
        finder.experiment = experiment
    if request.ranked:
        dataset = load_dataset(spec, request.data)
        lookup = with_ranked_runs(finder, request.ranked, dataset, finder.workspace, table)
    seeds = request.seeds or (() if table.ablation or not request.spec else spec.seeds)
    command = _filler(table, spec, request) if table.ablation else None
    built = build_results_table(table, lookup, known=model_names(), run=spec.asked, seeds=seeds, command=command)
    return built.model_copy(update={"footnotes": (*built.footnotes, *finder.footnotes)})


def _present(table: DatasetTable, data: Path) -> dict[str, Dataset]:
    """Return key -> dataset for the datasets of the table whose folder is in ``data``."""
    return {
        entry.key: load_dataset(RunSpec(name=entry.key, dataset=entry.dataset, extractor=NO_EXTRACTOR), data)
        for entry in table.datasets
        if (data / str(entry.dataset.options.get("folder", entry.dataset.name))).is_dir()
    }


def build_dataset_table(spec: DatasetTable, dataset_by_name: Mapping[str, Dataset]) -> Table:
    """Count sessions and images of the given datasets (paper Table 1); other datasets keep empty cells."""
    blocks, notes, printed = [], [], any(entry.paper for entry in spec.datasets)
    for entry in spec.datasets:
        dataset = dataset_by_name.get(entry.key)
        rows = []
        for split in ("train", "test"):
            paper = entry.paper.get(split, {})
            counts = _counts(dataset, split, spec.turns) if dataset else {}
            absent = Cell(note=f"the files given hold no {split} part") if dataset else Cell(command=READ)
            cells = []
            for name in spec.columns:
                value, printed_value = counts.get(name), paper.get(name)
                cell = absent if value is None else Cell(value=value)
                gap = None if value is None or printed_value is None else value - printed_value
                cells.append(cell.model_copy(update={"paper": printed_value, "difference": gap}))
            rows.append(Row(label=split.capitalize(), cells=tuple(cells)))
            for turns, count in (dataset.turn_counts(split) if dataset else {}).items():
                if turns not in spec.turns:
                    notes.append(f"{entry.label}, {split}: {count:,} sessions of {turns} turns are not shown.")
        blocks.append(Block(title=entry.label, rows=tuple(rows)))
        notes += [f"{entry.label}: {note.rstrip('.')}." for note in (dataset.notes if dataset else ())]
    return Table(
        title=spec.title,
        columns=(
            *(Column(group="Sessions", label=f"{n} turns", kind="count") for n in spec.turns),
            Column(group="Images", label="total", kind="count"),
        ),
        blocks=tuple(blocks),
        footnotes=(*paper_notes(printed), *([EQUAL] if printed else []), *notes, *spec.notes),
    )


def _counts(dataset: Dataset, split: Literal["train", "test"], turns: Sequence[int]) -> dict[str, int]:
    """Return counts by column; empty if the split has no sessions or no galleries, because it was not counted."""
    sessions, images = dataset.turn_counts(split), dataset.gallery_images(split)
    found = {str(n): sessions.get(n, 0) for n in turns} if sessions else {}
    return found | ({"images": images} if images else {})


def filled_from(table: ResultsTable, spec: RunSpec, given: str) -> ResultsTable:
    """Return the table for another run spec: its title names it; for another dataset the paper's values are removed."""
    if not given or given == table.run:
        return table
    changes: dict[str, Any] = {"title": f"{table.title} (filled from run spec {spec.name})"}
    if (name := spec.dataset.name) != load_spec(table.run).dataset.name:
        changes["rows"] = tuple(row.model_copy(update={"paper": {}}) for row in table.rows)
        changes["notes"] = (f"The paper's table is of another dataset than {name}: its values are left out.",)
    return table.model_copy(update=changes)


def _filler(table: ResultsTable, spec: RunSpec, request: TableRequest) -> Fill:
    """Return the commands that fill the rows of an ablation's table: each runs the matching point."""
    name = table.ablation if kind_of_table(request.name) == "table" else request.name
    ablation = load_ablation_spec(name)

    def command(row: RowSpec, seeds: Sequence[int]) -> str:
        number = point_of(ablation, spec, row)
        words = ["ablate", name, *(["--only", str(number)] if number else [])]
        words += ["--variant", request.variant] if request.variant else []
        words += ["--spec", request.spec] if request.spec else []
        words += ["--seeds", seed_text(seeds)] if tuple(seeds) != ablation.seeds else []
        return command_line(*words, *request.options)

    return command


def point_of(ablation: AblationSpec, spec: RunSpec, row: RowSpec) -> int | None:
    """Return the number of the point with the row's run and the views that the row needs, or None."""
    wanted = make_run(spec, row.model, 0, row.options, row.training)
    made = ((p.number, make_run(spec, p.model, 0, p.options, p.training)) for p in ablation.points())
    return next((number for number, run in made if run == wanted), None)


class RunFinder:
    """Lookup of evaluated runs of a spec, exactly those identified by its present options."""

    def __init__(self, spec: RunSpec, data: Path, workspace: Workspace, table: ResultsTable, seeds: Sequence[int] = ()):
        self.spec, self.data, self.workspace, self.table, self.seeds = spec, data, workspace, table, tuple(seeds)
        self.shown: list[str] = []  # one line per row with other seeds than requested
        self.stale: list[str] = []  # one line per run or step of other data than the spec's present data

    @property
    def footnotes(self) -> tuple[str, ...]:
        """Lines on other seeds that are shown, and on runs left out, without repetitions."""
        return tuple(dict.fromkeys([*self.shown, *self.stale]))

    @cached_property
    def experiment(self) -> Experiment | None:
        """Return the experiment, or None without a current store, in which case no current run can exist."""
        if self.workspace.note(self.spec) is None:
            return None
        try:
            return Experiment(self.spec, load_dataset(self.spec, self.data), self.workspace, "cpu")
        except StaleError as error:
            self.stale.append(f"All rows are left out: {error}")
            return None
        except IncompleteError:
            return None

    def __call__(self, row: RowSpec, seeds: Sequence[int]) -> list[dict[str, Any]]:
        listed = row.model in self.spec.models or row.model in presets() or self.table.ablation
        if not listed or row.model not in model_names() or self.experiment is None:
            return []
        trainable, view, found = model_class(row.model).trainable, View(turns=self.table.turns, last=row.last), []
        more: Sequence[int] = ()
        if trainable and not self.seeds:
            more = self.experiment.other_seeds(make_run(self.spec, row.model, seeds[0], row.options, row.training))
        for seed in [*seeds, *(s for s in more if s not in seeds)] if trainable else seeds[:1]:
            run = make_run(self.spec, row.model, seed, row.options, row.training)
            state = self.experiment.state(run, view)
            if state.name != "evaluated":
                self.stale += [f"{row.label} (seed {seed}) is left out: {state}"] if state.changed else []
                continue
            files = self.experiment.result_files(run, view)
            summary = files.load(self.experiment.evaluation_identity(run, view)) or {}
            found.append({**summary, "results": str(files.results)})
        have = [s["seed"] for s in found if s["seed"] is not None]
        if set(have) - set(seeds):
            shown = seed_text(sorted(have))
            self.shown.append(f"{row.label}: all seeds that are trained on the current data, {shown}.")
        return found
