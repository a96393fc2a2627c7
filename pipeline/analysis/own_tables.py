"""Tables of a run spec's own models or of an ablation's own grid, as table specs, and rows for other systems' ranked lists."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any

from manifests.ablation_spec import AblationSpec, ablation_names
from manifests.errors import ManifestError, Problem, nearest
from manifests.load import read_toml, shipped, spec_path
from manifests.schema import Dataset, RunSpec
from manifests.table_spec import BlockSpec, ResultsTable, RowSpec, table_names
from manifests.views import View
from pipeline.analysis.results_table import FindRuns
from pipeline.core.workspace import Workspace
from pipeline.jobs.ranked import RankedFolder
from pipeline.training.models import model_class, model_names, model_title

SUBSET_LABELS = {"last pair unseen": "Last pair unseen in training", "no pair seen": "No pair seen in training"}


def kind_of_table(name: str) -> str:
    """Return "table", "ablation" or "run": the kind of spec that ``table NAME`` prints a table of.

    A shipped name is looked up among tables, ablations and run specs, in this order; a file is known by its keys.
    Raises ManifestError, with the nearest name, if there is none.
    """
    kinds = {"table": table_names(), "ablation": ablation_names(), "run": tuple(shipped("runs"))}
    if kind := next((kind for kind, names in kinds.items() if name in names), ""):
        return kind
    if Path(name).suffix != ".toml" and not Path(name).exists():
        known = [known for names in kinds.values() for known in names]
        raise ManifestError([Problem(name, "", "no table, ablation or run spec of this name", nearest(name, known))])
    values = read_toml(spec_path(name))
    return "table" if "kind" in values else "ablation" if "grid" in values else "run"


def own_table(spec: RunSpec, dataset: Dataset, subsets: Mapping[str, AbstractSet[str]]) -> ResultsTable:
    """Return a table with a row per model of the spec, and a block per leak subset smaller than the whole."""
    return ResultsTable(
        kind="results",
        title=f"{spec.title or spec.name}: final-turn retrieval",
        run=spec.name,
        seeds=spec.seeds,
        blocks=_blocks(dataset, subsets),
        rows=model_rows(spec.models),
    )


def model_rows(names: Iterable[str]) -> tuple[RowSpec, ...]:
    return tuple(RowSpec(model=n, label=model_title(n), deterministic=not model_class(n).trainable) for n in names)


def ablation_table(ablation: AblationSpec, dataset: Dataset, subsets: Mapping[str, AbstractSet[str]]) -> ResultsTable:
    """Return a table with a row per point of the grid and view; a note states what is equal in all rows.

    Views of another number of turns are left out.
    """
    points = ablation.points(model_names())
    shared = [word for point in points[:1] for word in point.words if all(word in p.words for p in points)]
    turns, rows = ablation.views[0].turns, []
    for point in points:
        label = " ".join([f"{point.number}. {point.model}", *(word for word in point.words if word not in shared)])
        for last in (view.last for view in ablation.views if view.turns == turns):
            rows.append(
                RowSpec(
                    model=point.model,
                    label=f"{label}, last {last}" if last else label,
                    key=f"{point.number}-{last}" if last else f"{point.number}",
                    options=dict(point.options),
                    training=dict(point.training),
                    last=last,
                    deterministic=not model_class(point.model).trainable,
                )
            )
    return ResultsTable(
        kind="results",
        title=f"{ablation.title or ablation.name}: final-turn retrieval",
        run=ablation.run,
        ablation=ablation.name,
        turns=turns,
        seeds=ablation.seeds,
        blocks=_blocks(dataset, subsets),
        notes=(f"All rows: {' '.join(shared)}.",) if shared else (),
        rows=tuple(rows),
    )


def _blocks(dataset: Dataset, subsets: Mapping[str, AbstractSet[str]]) -> tuple[BlockSpec, ...]:
    """Return a block for all sessions, and one for each subset that lacks some of them."""
    tests = {s.id for s in dataset.split("test")}
    smaller = [name for name, ids in subsets.items() if name != "all" and ids and ids != tests]
    labels = {"all": "All sessions"} | {name: SUBSET_LABELS.get(name, name.capitalize()) for name in smaller}
    return tuple(BlockSpec(subset=name, label=label) for name, label in labels.items())


GROUP = "Ranked lists"


def with_ranked_rows(table: ResultsTable, names: Sequence[str]) -> ResultsTable:
    """Return the table with one more row for each named list. Raises ManifestError for a name that a row has."""
    for name in names:
        if name in {row.name for row in table.rows}:
            what, fix = "a row of the table has this name", "score it under another"
            raise ManifestError([Problem("--ranked", name, what, fix)])
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
