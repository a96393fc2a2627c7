"""Rows of a table for ranked lists that other systems made."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from manifests.errors import ManifestError, Problem
from manifests.schema import Dataset
from manifests.table_spec import ResultsTable, RowSpec
from manifests.views import View
from pipeline.core.workspace import Workspace
from pipeline.jobs.ranked import RankedFolder

FindRuns = Callable[[RowSpec, Sequence[int]], Iterable[Mapping[str, Any]]]
GROUP = "Ranked lists"


def with_ranked_rows(table: ResultsTable, names: Sequence[str]) -> ResultsTable:
    """Return the table with one more row for each named list. Raises ManifestError for a name that a row has."""
    for name in names:
        if name in {row.name for row in table.rows}:
            problem = Problem("--ranked", name, "a row of the table has this name", "score it under another")
            raise ManifestError([problem])
    rows = (RowSpec(model=name, label=name, group=GROUP, deterministic=True) for name in dict.fromkeys(names))
    return table.model_copy(update={"rows": (*table.rows, *rows)})


def with_ranked_runs(
    find: FindRuns, names: Sequence[str], dataset: Dataset, workspace: Workspace, table: ResultsTable
) -> FindRuns:
    """Return a lookup that gives the score of a ranked list for its row, and what ``find`` gives for the others."""

    def found(row: RowSpec, seeds: Sequence[int]) -> Iterable[Mapping[str, Any]]:
        if row.model not in names:
            return find(row, seeds)
        return [RankedFolder.of(workspace, dataset, row.model).load(dataset, View(turns=table.turns))]

    return found
