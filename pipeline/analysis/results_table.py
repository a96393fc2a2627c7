"""Tables of results: a table spec filled with the summaries of evaluated runs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from manifests.commandline import PROGRAM
from manifests.table_spec import BlockSpec, ColumnGroup, ResultsTable, RowSpec
from pipeline.analysis.cells import Block, Cell, Column, Row, Statement, Table, paper_notes, seed_text
from pipeline.analysis.protocol import RunSummary, protocol_notes, read_runs
from pipeline.analysis.statements import Resampled
from pipeline.evaluation.metrics import OVERALL

FindRuns = Callable[[RowSpec, Sequence[int]], Iterable[Mapping[str, Any]]]
Fill = Callable[[RowSpec, Sequence[int]], str]
CHANCE = "chance (random order)"


def build_results_table(
    spec: ResultsTable,
    find_runs: FindRuns,
    *,
    known: Collection[str] = (),
    run: str = "",
    seeds: Sequence[int] = (),
    command: Fill | None = None,
) -> Table:
    """Fill ``spec`` with its runs. Raises TableError for incomplete summaries, or runs that cannot share a cell.

    ``find_runs``: (row, seeds) -> existing summaries (``Evaluation.summary`` with the run's facts); if they name their
    ``results`` files, cells get intervals and the tested row gets statements. ``known``: names of the registered memory
    models; optional rows of others are omitted. ``run``, ``seeds``: run spec on the command line and requested seeds,
    if not the table's own. ``command``: (row, missing seeds) -> the command that fills a cell; default: `run`.
    """
    filled = _Filled(spec, find_runs, known, tuple(seeds) or spec.seeds, command or _fill(run or spec.run))
    tests, statements = filled.statements()
    return Table(
        title=spec.title,
        columns=filled.columns(),
        blocks=tuple(filled.block(block) for block in filled.spec.blocks),
        footnotes=filled.footnotes(),
        omitted=filled.paper_rows(),
        tests=tests,
        statements=statements,
    )


def _fill(run: str) -> Fill:
    return lambda row, seeds: f"{PROGRAM} run {run} --model {row.model} --seeds {seed_text(seeds)}"


class _Filled:
    def __init__(
        self, spec: ResultsTable, find_runs: FindRuns, known: Collection[str], seeds: Sequence[int], fill: Fill
    ):
        """Set up for the requested ``seeds``; ``fill`` and ``known`` as for ``build_results_table``."""
        self.seeds, self.fill = seeds, fill
        self.found: dict[str, list[RunSummary]] = {}
        for row in spec.rows:
            self.found[row.name] = read_runs(row.name, find_runs(row, self._asked(row)))
        self.runs = [summary for row in spec.rows for summary in self.found[row.name]]
        pairs = ((block, spec.blocks[:n]) for n, block in enumerate(spec.blocks))
        self.repeated = [b for b, above in pairs if any(_same_sessions(self.runs, b, other) for other in above)]
        blocks = tuple(block for block in spec.blocks if block not in self.repeated)
        self.spec = spec.model_copy(update={"blocks": blocks})
        self.groups = spec.columns or _groups(self.runs, spec)
        self.shown = [row for row in spec.rows if not row.optional or row.model in known or self.found[row.name]]
        self.omitted = [row for row in spec.rows if row not in self.shown]
        metrics = [m for g in self.groups for m in g.metrics if not (g.relative_to or m.startswith("mAP"))]
        fixed = {row.name for row in self.shown if row.deterministic}
        runs = {row.name: self.found[row.name] for row in self.shown}
        self.drawn = Resampled(runs, [*metrics, spec.tested_metric], fixed)

    def _asked(self, row: RowSpec) -> Sequence[int]:
        """Return the seeds of a row: the first one for a deterministic method."""
        return self.seeds[:1] if row.deterministic else self.seeds

    def _command(self, row: RowSpec) -> str:
        """Return the command that adds the row's missing seeds; "" if none is missing."""
        found = self.found[row.name]
        if row.deterministic and found:
            return ""
        done = {run.seed for run in found}
        missing = [seed for seed in self._asked(row) if seed not in done]
        return self.fill(row, missing) if missing else ""

    def columns(self) -> tuple[Column, ...]:
        def column(group: ColumnGroup, metric: str) -> Column:
            if group.relative_to:
                return Column(group=group.label, label="", kind="change")
            return Column(group=group.label, label="Mean" if metric == "mean" else metric)

        return tuple(column(group, metric) for group in self.groups for metric in group.metrics)

    def block(self, block: BlockSpec) -> Block:
        rows = [Row(label=row.label, group=row.group, cells=self._cells(row, block.subset)) for row in self.shown]
        return Block(title=block.label + _sessions(self.runs, block.subset), rows=(*rows, *self._chance(block.subset)))

    def _cells(self, row: RowSpec, subset: str) -> tuple[Cell, ...]:
        printed = subset == self.spec.paper_subset
        return tuple(
            self._cell(row, subset, group, metric, paper)
            for group in self.groups
            for metric, paper in zip(group.metrics, _paper(row, group, printed), strict=True)
        )

    def _cell(self, row: RowSpec, subset: str, group: ColumnGroup, metric: str, printed: float | None) -> Cell:
        """Return a cell with its interval, or with its change relative to the group's reference row."""
        cell = _cell(self.found[row.name], subset, group.source, metric, printed, self._command(row))
        if group.relative_to:
            base = next(other for other in self.spec.rows if other.name == group.relative_to)
            reference = _cell(self.found[base.name], subset, group.source, metric, None, self._command(base))
            return _change(cell, reference, base is row)
        bounds = self.drawn.interval(row.name, subset, group.source, metric)
        return cell.model_copy(update={"low": bounds[0], "high": bounds[1]}) if bounds else cell

    def _chance(self, subset: str) -> tuple[Row, ...]:
        """Return the row of a random order, or none without a run of these sessions."""
        if (run := next((r for r in self.runs if r.chance(subset, OVERALL, "mean") is not None), None)) is None:
            return ()
        columns = [(group, metric) for group in self.groups for metric in group.metrics]
        values = [None if group.relative_to else run.chance(subset, group.source, metric) for group, metric in columns]
        return (Row(label=CHANCE, group=CHANCE, cells=tuple(Cell(value=value) for value in values)),)

    def statements(self) -> tuple[str, tuple[Statement, ...]]:
        """Return the description of the tests, and the statements on the tested rows; none if they are not shown."""
        names = [row.label for row in self.shown]
        labels = {r.name: r.label if names.count(r.label) == 1 else f"{r.group}, {r.label}" for r in self.shown}
        tested = {self.spec.tested, *(one.tested for one in self.spec.comparisons)}
        return self.drawn.statements(self.spec, labels) if tested & set(labels) else ("", ())

    def footnotes(self) -> tuple[str, ...]:
        paper = paper_notes(any(row.paper for row in self.shown), [row.label for row in self.omitted])
        repeated = ", ".join(block.label for block in self.repeated)
        left_out = [f"The same sessions as in a block above, so left out: {repeated}."] if repeated else []
        return (*protocol_notes(self.runs), *paper, *self.spec.notes, *left_out)

    def paper_rows(self) -> tuple[Row, ...]:
        cells = ([Cell(paper=p) for g in self.groups for p in _paper(row, g, True)] for row in self.omitted)
        return tuple(Row(label=row.label, group=row.group, cells=c) for row, c in zip(self.omitted, cells, strict=True))


def _same_sessions(runs: Sequence[RunSummary], block: BlockSpec, other: BlockSpec) -> bool:
    """Return whether two blocks are of the same sessions; subsets are nested, so their counts decide."""
    pair = (block.subset, other.subset)
    return bool(runs) and all(r.metrics.keys() >= set(pair) and len({r.count(s) for s in pair}) == 1 for r in runs)


def _change(cell: Cell, base: Cell, itself: bool) -> Cell:
    """Return the change of ``cell`` relative to ``base`` in percent, as a cell; empty for the base row itself."""
    empty = {"value": None, "std": None, "difference": None, "low": None, "high": None}
    if itself or cell.value is None or not base.value:
        note = ""
        if not itself and cell.value is not None:
            note = "its reference row has no runs" if base.value is None else "its reference row is zero"
        command = cell.command or base.command if not itself or cell.value is None else ""
        return cell.model_copy(update={**empty, "note": note, "command": command})
    change = 100.0 * (cell.value / base.value - 1.0)
    gap = None if cell.paper is None else change - cell.paper
    return cell.model_copy(update={**empty, "value": change, "difference": gap, "runs": (*cell.runs, *base.runs)})


def _cell(
    runs: Sequence[RunSummary], subset: str, category: str, metric: str, paper: float | None, command: str
) -> Cell:
    values = [run.value(subset, category, metric) for run in runs]
    empty = Cell(paper=paper, command=command)
    if not runs:
        return empty
    if any(value is None for value in values):
        where = f"{category}, {subset}" if category != OVERALL else subset
        return empty.model_copy(update={"note": f"the runs have no {metric} of these sessions ({where})"})
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


def _sessions(runs: Sequence[RunSummary], subset: str) -> str:
    counts = sorted({run.count(subset) for run in runs if subset in run.metrics})
    return f" (n = {'-'.join(f'{n:,}' for n in dict.fromkeys([counts[0], counts[-1]]))})" if counts else ""
