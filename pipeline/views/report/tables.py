"""Tables of a report: those of the paper that the spec fills, or one of the spec's own models."""

from __future__ import annotations

from pathlib import Path

from manifests.load import shipped
from manifests.table_spec import ResultsTable, load_table_spec
from pipeline.analysis.cells import Table
from pipeline.analysis.own_tables import own_table
from pipeline.analysis.results_table import build_results_table
from pipeline.analysis.tables import RunFinder
from pipeline.jobs.experiment import Experiment
from pipeline.training.models import model_names


def report_tables(experiment: Experiment, data: Path) -> list[Table]:
    """Return every shipped results table with this run spec; if there is none, a table of the spec's own models."""
    wanted = [t for t in map(load_table_spec, shipped("tables")) if isinstance(t, ResultsTable)]
    mine = [t for t in wanted if t.run == experiment.spec.name] or [
        own_table(experiment.spec, experiment.dataset, experiment.subsets)
    ]
    return [_filled(table, experiment, data) for table in mine]


def _filled(table: ResultsTable, experiment: Experiment, data: Path) -> Table:
    finder = RunFinder(experiment.spec, data, experiment.workspace, table)
    finder.__dict__["experiment"] = experiment  # the report's own, so that it is loaded once
    seeds = () if table.ablation else experiment.spec.seeds
    built = build_results_table(table, finder, known=model_names(), run=experiment.spec.asked, seeds=seeds)
    return built.model_copy(update={"footnotes": (*built.footnotes, *finder.footnotes)})
