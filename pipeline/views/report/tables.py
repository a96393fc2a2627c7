"""Tables of a report: those of the paper that the spec fills, or one of the spec's own models."""

from __future__ import annotations

import shlex
from pathlib import Path

from manifests.table_spec import ResultsTable, load_table_spec, table_names
from pipeline.analysis.cells import Table
from pipeline.analysis.own_tables import own_table
from pipeline.analysis.tables import RunFinder, TableRequest, fill
from pipeline.jobs.experiment import Experiment


def report_tables(experiment: Experiment, data: Path) -> list[Table]:
    """Return every shipped results table with this run spec; if there is none, a table of the spec's own models."""
    spec, workspace = experiment.spec, experiment.workspace
    shipped = {name: load_table_spec(name) for name in table_names()}
    mine = {name: t for name, t in shipped.items() if isinstance(t, ResultsTable) and t.run == spec.name}
    made = []
    for name, table in (mine or {spec.name: own_table(spec, experiment.dataset, experiment.subsets)}).items():
        finder = RunFinder(spec, data, workspace, table)
        finder.experiment = experiment  # the report's own, so that it is loaded once
        made.append(fill(table, finder, TableRequest(name, data, workspace.out, shlex.split(spec.asked)[0])))
    return made
