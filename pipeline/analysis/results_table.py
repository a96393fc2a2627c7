"""Tables of results: a table spec filled with the summaries of evaluated runs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from manifests.commandline import PROGRAM
from manifests.table_spec import BlockSpec, ColumnGroup, ResultsTable, RowSpec
from pipeline.analysis.cells import Block, Cell, Column, Row, Table, paper_notes, seed_text
from pipeline.analysis.protocol import RunSummary, protocol_notes, read_runs
from pipeline.analysis.statements import Resampled
from pipeline.evaluation.metrics import OVERALL

FindRuns = Callable[[RowSpec, Sequence[int]], Iterable[Mapping[str, Any]]]
Fill = Callable[[RowSpec, Sequence[int]], str]
CHANCE = "chance (random order)"
FILL = PROGRAM + " run {run} --model {model} --seeds {seeds}"


def build_results_table(
    spec: ResultsTable,
    find_runs: FindRuns,
    *,
    known: Collection[str] = (),
    run: str = "",
    seeds: Sequence[int] = (),
    command: str | Fill = FILL,
) -> Table:
    """Fill ``spec`` with the existing runs.

    Args:
        find_runs: (row, seeds) -> existing summaries (``Evaluation.summary`` with the run's facts). If summaries name
            their ``results`` files, cells get intervals and the tested row gets statements.
        known: names of the registered memory models; optional rows of other models are omitted.
        run: name of the run spec on the command line, if it is not the table's own.
        seeds: requested seeds, if they are not the table's own.
        command: fills a cell: a template with {run}, {model} and {seeds}, or (row, missing seeds) -> command.

    Raises:
        TableError: runs that cannot share a cell, or an incomplete summary.
    """
    wanted = tuple(seeds) or spec.seeds
    found: dict[str, list[RunSummary]] = {}
    for row in spec.rows:
        found[row.name] = read_runs(row.name, find_runs(row, wanted[:1] if row.deterministic else wanted))
    runs = [summary for row in spec.rows for summary in found[row.name]]
    repeated = [
        block for n, block in enumerate(spec.blocks) if any(_same_sessions(runs, block, b) for b in spec.blocks[:n])
    ]
    spec = spec.model_copy(update={"blocks": tuple(block for block in spec.blocks if block not in repeated)})
    groups = spec.columns or _groups(runs, spec)
    shown = [row for row in spec.rows if not row.optional or row.model in known or found[row.name]]
    omitted = [row for row in spec.rows if row not in shown]
    metrics = [metric for group in groups for metric in group.metrics if not group.relative_to]
    fixed = {row.name for row in shown if row.deterministic}
    drawn = Resampled({row.name: found[row.name] for row in shown}, [*metrics, spec.tested_metric], fixed)

    def fill(row: RowSpec) -> str:
        asked = wanted[:1] if row.deterministic else wanted
        done = asked if row.deterministic and found[row.name] else {r.seed for r in found[row.name]}
        missing = [seed for seed in asked if seed not in done]
        if not missing:
            return ""
        if callable(command):
            return command(row, missing)
        return command.format(run=run or spec.run, model=row.model, seeds=seed_text(missing))

    def cells(row: RowSpec, subset: str) -> tuple[Cell, ...]:
        made = []
        for group in groups:
            paper = _paper(row, group, subset == spec.paper_subset)
            for metric, printed in zip(group.metrics, paper, strict=True):
                cell = _cell(found[row.name], subset, group.source, metric, printed, fill(row))
                if group.relative_to:
                    base = next(other for other in spec.rows if other.name == group.relative_to)
                    reference = _cell(found[base.name], subset, group.source, metric, None, fill(base))
                    cell = _change(cell, reference, base is row)
                elif bounds := drawn.interval(row.name, subset, group.source, metric):
                    cell = cell.model_copy(update={"low": bounds[0], "high": bounds[1]})
                made.append(cell)
        return tuple(made)

    def chances(subset: str) -> tuple[Row, ...]:
        run = next((r for r in runs if r.chance(subset, OVERALL, "mean") is not None), None)
        if run is None:
            return ()
        values = [
            None if g.relative_to else run.chance(subset, g.source, metric) for g in groups for metric in g.metrics
        ]
        cells = tuple(Cell(value=value) for value in values)
        return (Row(label=CHANCE, group=CHANCE, cells=cells),)

    blocks = []
    for block in spec.blocks:
        rows = tuple(Row(label=row.label, group=row.group, cells=cells(row, block.subset)) for row in shown)
        title = block.label + _sessions(runs, block.subset)
        blocks.append(Block(title=title, rows=(*rows, *chances(block.subset))))

    labels = {
        row.name: row.label if sum(r.label == row.label for r in shown) == 1 else f"{row.group}, {row.label}"
        for row in shown
    }
    tested = drawn.statements(spec, labels) if spec.tested in labels else ("", ())
    return Table(
        title=spec.title,
        columns=tuple(
            Column(group=g.label, label="", kind="change")
            if g.relative_to
            else Column(group=g.label, label=_metric_label(m))
            for g in groups
            for m in g.metrics
        ),
        blocks=tuple(blocks),
        footnotes=(
            *protocol_notes(runs),
            *paper_notes(any(row.paper for row in shown), [row.label for row in omitted]),
            *spec.notes,
            *(
                [f"The same sessions as in a block above, so left out: {', '.join(b.label for b in repeated)}."]
                if repeated
                else []
            ),
        ),
        omitted=tuple(
            Row(
                label=row.label,
                group=row.group,
                cells=tuple(Cell(paper=p) for g in groups for p in _paper(row, g, True)),
            )
            for row in omitted
        ),
        tests=tested[0],
        statements=tested[1],
    )


def _same_sessions(runs: Sequence[RunSummary], block: BlockSpec, other: BlockSpec) -> bool:
    """Return whether two blocks are of the same sessions; subsets are nested, so their counts decide."""
    return bool(runs) and all(
        block.subset in run.metrics
        and other.subset in run.metrics
        and run.count(block.subset) == run.count(other.subset)
        for run in runs
    )


def _change(cell: Cell, base: Cell, itself: bool) -> Cell:
    """Return the change of ``cell`` relative to ``base`` in percent, as a cell; empty for the base row itself."""
    empty = {"value": None, "std": None, "difference": None, "low": None, "high": None}
    if itself or cell.value is None or not base.value:
        note = ""
        if not itself and cell.value is not None:
            note = "its reference row has no runs" if base.value is None else "its reference row is zero"
        return cell.model_copy(
            update={
                **empty,
                "note": note,
                "command": cell.command or base.command if not itself or cell.value is None else "",
            }
        )
    change = 100.0 * (cell.value / base.value - 1.0)
    gap = None if cell.paper is None else change - cell.paper
    return cell.model_copy(update={**empty, "value": change, "difference": gap, "runs": (*cell.runs, *base.runs)})


def _cell(
    runs: Sequence[RunSummary], subset: str, category: str, metric: str, paper: float | None, command: str
) -> Cell:
    values = [run.value(subset, category, metric) for run in runs]
    if not runs:
        return Cell(paper=paper, command=command)
    if any(value is None for value in values):
        where = f"{category}, {subset}" if category != OVERALL else subset
        return Cell(paper=paper, command=command, note=f"the runs have no {metric} of these sessions ({where})")
    numbers = [value for value in values if value is not None]
    mean = fmean(numbers)
    return Cell(
        value=mean,
        std=stdev(numbers) if len(numbers) > 1 else None,
        seeds=tuple(run.seed for run in runs if run.seed is not None),
        paper=paper,
        difference=None if paper is None else mean - paper,
        runs=tuple(run.run for run in runs),
        store=runs[0].store,
        command=command,
    )


def _paper(row: RowSpec, group: ColumnGroup, printed: bool) -> tuple[float | None, ...]:
    values = row.paper.get(group.category) if printed else None
    return values if values is not None else (None,) * len(group.metrics)


def _groups(runs: Sequence[RunSummary], spec: ResultsTable) -> tuple[ColumnGroup, ...]:
    """Return one column group per category of the runs, and the overall one."""
    names = dict.fromkeys(name for run in runs for name in run.metrics.get("all", {}) if name != OVERALL)
    groups = [ColumnGroup(category=name, label=name.capitalize(), metrics=spec.metrics) for name in names]
    last = ColumnGroup(category=OVERALL, label="Overall", metrics=tuple(dict.fromkeys((*spec.metrics, "mean"))))
    return (*groups, last) if len(groups) > 1 else (last,)


def _metric_label(metric: str) -> str:
    return "Mean" if metric == "mean" else metric


def _sessions(runs: Sequence[RunSummary], subset: str) -> str:
    counts = sorted({run.count(subset) for run in runs if subset in run.metrics})
    return f" (n = {'-'.join(f'{n:,}' for n in dict.fromkeys([counts[0], counts[-1]]))})" if counts else ""
