"""The paper's tables from the existing runs, which are matched by configuration."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from manifests.ablation_spec import AblationSpec, load_ablation_spec
from manifests.commandline import command_line
from manifests.errors import IncompleteError
from manifests.load import load_dataset, load_spec
from manifests.schema import RunSpec
from manifests.table_spec import DatasetTable, ResultsTable, RowSpec, load_table_spec
from manifests.views import View
from pipeline.analysis.cells import Table, seed_text
from pipeline.analysis.dataset_table import build_dataset_table
from pipeline.analysis.render import render
from pipeline.analysis.results_table import FILL, build_results_table
from pipeline.analysis.tuning.sealed import read_spec
from pipeline.core.binding import StaleError
from pipeline.core.workspace import Workspace
from pipeline.jobs.identities import make_run
from pipeline.jobs.stage2 import Experiment
from pipeline.training.models import models as registry


def paper_table(
    name: str,
    spec_name: str | None,
    form: str,
    overrides: Sequence[str],
    data: Path,
    out: Path,
    options: Sequence[str] = (),
    seeds: Sequence[int] = (),
) -> str:
    """Return table ``name`` of the paper as text in ``form``. Datasets missing from ``data`` leave empty cells."""
    return render(build_table(name, spec_name, overrides, data, out, options, seeds), form)


def build_table(
    name: str,
    spec_name: str | None,
    overrides: Sequence[str],
    data: Path,
    out: Path,
    options: Sequence[str] = (),
    seeds: Sequence[int] = (),
) -> Table:
    """Return the table as data. ``options``: words repeated in printed commands (``--data DIR``, ...)."""
    table = load_table_spec(name)
    if isinstance(table, DatasetTable):
        found = {}
        for entry in table.datasets:
            wanted = RunSpec(name=f"table-{name}", dataset=entry.dataset, extractor={"name": "none"})  # type: ignore
            if (data / str(entry.dataset.options.get("folder", entry.dataset.name))).is_dir():
                found[entry.key] = load_dataset(wanted, data)
        return build_dataset_table(table, found)
    assert isinstance(table, ResultsTable)
    spec = read_spec(spec_name or table.run, overrides, shlex.join([spec_name or table.run, *options]))
    table = filled_from(table, spec, spec_name or "")
    filler = Filler(table, spec, spec_name or "", options) if table.ablation else None
    finder = RunFinder(spec, data, Workspace(out), table, seeds)
    built = build_results_table(
        table,
        finder,
        known=registry.names(),
        run=spec.asked,
        seeds=seeds or (() if table.ablation or not spec_name else spec.seeds),
        command=filler or FILL,
    )
    return built.model_copy(update={"footnotes": (*built.footnotes, *dict.fromkeys([*finder.shown, *finder.stale]))})


def filled_from(table: ResultsTable, spec: RunSpec, given: str) -> ResultsTable:
    """Return the table for another run spec: its title names it; for another dataset the paper's values are removed."""
    if not given or given == table.run:
        return table
    changes: dict[str, Any] = {"title": f"{table.title} (filled from run spec {spec.name})"}
    if spec.dataset.name != load_spec(table.run).dataset.name:
        changes["rows"] = tuple(row.model_copy(update={"paper": {}}) for row in table.rows)
        changes["notes"] = (
            f"The paper's table is of another dataset than {spec.dataset.name}: its values are left out.",
        )
    return table.model_copy(update=changes)


class Filler:
    """Commands that fill table rows: each runs the matching point of the table's ablation."""

    def __init__(self, table: ResultsTable, spec: RunSpec, run: str, options: Sequence[str] = ()):
        self.table, self.spec, self.run, self.options = table, spec, run, list(options)

    @cached_property
    def ablation(self) -> AblationSpec:
        return load_ablation_spec(self.table.ablation)

    def __call__(self, row: RowSpec, seeds: Sequence[int]) -> str:
        number = point_of(self.ablation, self.spec, row)
        words = ["ablate", self.table.ablation]
        words += ["--only", str(number)] if number else []
        words += ["--spec", self.run] if self.run else []
        words += ["--seeds", seed_text(seeds)] if tuple(seeds) != self.ablation.seeds else []
        return command_line(*words, *self.options)


def point_of(ablation: AblationSpec, spec: RunSpec, row: RowSpec) -> int | None:
    """Return the number of the point with the row's run and the views that the row needs, or None."""
    wanted = make_run(spec, row.model, 0, row.options, row.training)
    for point in ablation.points():
        if make_run(spec, point.model, 0, point.options, point.training) == wanted:
            return point.number
    return None


class RunFinder:
    """Lookup of evaluated runs of a spec, exactly those identified by its present options."""

    def __init__(self, spec: RunSpec, data: Path, workspace: Workspace, table: ResultsTable, seeds: Sequence[int] = ()):
        self.spec, self.data, self.workspace, self.table, self.seeds = spec, data, workspace, table, tuple(seeds)
        self.shown: list[str] = []  # one line per row with other seeds than requested
        self.stale: list[str] = []  # one line per run or step of other data than the spec's present data

    @cached_property
    def stage(self) -> Experiment | None:
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
        listed = row.model in self.spec.models or self.table.ablation
        if not listed or row.model not in registry.names() or self.stage is None:
            return []
        trainable, view, found = registry.get(row.model).trainable, View(turns=self.table.turns, last=row.last), []
        more: Sequence[int] = ()
        if trainable and not self.seeds:
            more = self.stage.other_seeds(make_run(self.spec, row.model, seeds[0], row.options, row.training))
        for seed in [*seeds, *(s for s in more if s not in seeds)] if trainable else seeds[:1]:
            run = make_run(self.spec, row.model, seed, row.options, row.training)
            state = self.stage.state(run, view)
            if state.name != "evaluated":
                self.stale += [f"{row.label} (seed {seed}) is left out: {state}"] if state.changed else []
                continue
            files = self.stage.result_files(run, view)
            found.append({**files.load(self.stage.evaluation_identity(run, view)), "results": str(files.results)})
        have = [s["seed"] for s in found if s["seed"] is not None]
        if set(have) - set(seeds):
            self.shown.append(
                f"{row.label}: all seeds that are trained on the present data, {seed_text(sorted(have))}."
            )
        return found
