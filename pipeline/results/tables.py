"""Tables as data: every cell knows its runs, the paper's value, and, while it is empty, the command that fills it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from statistics import fmean, stdev
from typing import Any, Literal

from manifests.schema import Dataset, Frozen
from manifests.table_spec import ColumnGroup, DatasetTable, ResultsTable, RowSpec
from pipeline.results.metrics import OVERALL
from pipeline.results.protocol import SHORT, RunSummary, protocol_notes, read_runs

FindRuns = Callable[[str, Sequence[int]], Iterable[Mapping[str, Any]]]
FILL = "python cli.py run {run} --model {model} --seeds {seeds}"
PAPER_LINES = "Lines 'paper' give the paper's value and the difference (ours - paper)."
EQUAL = "✓: equal to the paper."
READ = "python cli.py table 1 --data DIR"


class Cell(Frozen):
    """One value. ``command`` fills an empty cell or adds its missing seeds; ``note`` says why nothing can fill it."""

    value: int | float | None = None  # mean over the seeds: percent, or a count
    std: float | None = None  # sample standard deviation; None for one seed
    seeds: tuple[int, ...] = ()
    paper: int | float | None = None
    difference: int | float | None = None  # value - paper
    runs: tuple[str, ...] = ()
    store: str = ""
    command: str = ""
    note: str = ""


class Column(Frozen):
    group: str
    label: str
    kind: Literal["percent", "count"] = "percent"


class Row(Frozen):
    label: str
    group: str = ""
    cells: tuple[Cell, ...]


class Block(Frozen):
    """Rows under one heading, e.g. over one subset of the test sessions."""

    title: str
    rows: tuple[Row, ...]


class Table(Frozen):
    title: str
    columns: tuple[Column, ...]
    blocks: tuple[Block, ...]
    footnotes: tuple[str, ...] = ()
    omitted: tuple[Row, ...] = ()  # the paper's rows of methods that do not exist here; in JSON only

    @property
    def notes(self) -> list[str]:
        """Why cells are empty that no command fills, once each."""
        cells = (cell for block in self.blocks for row in block.rows for cell in row.cells)
        return list(dict.fromkeys(f"Empty: {cell.note}." for cell in cells if cell.note))

    @property
    def commands(self) -> dict[str, str]:
        """Command -> the labels of the rows it completes, in the order of the rows."""
        rows = [row for block in self.blocks for row in block.rows]
        found: dict[str, dict[str, None]] = {}
        for row in rows:
            for cell in row.cells:
                if cell.command:
                    found.setdefault(cell.command, {})[row.label] = None
        return {command: ", ".join(labels) for command, labels in found.items()}

    @property
    def traces(self) -> list[str]:
        """One line for each row that has runs: its seeds, run ids and store."""
        rows = [row for block in self.blocks for row in block.rows]
        found: dict[str, Cell] = {}
        for row in rows:
            for cell in row.cells:
                if cell.runs:
                    found.setdefault(row.label, cell)
        return [
            f"{label}: {_named('seed', c.seeds)}{_named('run', c.runs)}store {c.store[:SHORT]}"
            for label, c in found.items()
        ]


def build_results_table(
    spec: ResultsTable,
    find_runs: FindRuns,
    *,
    known: Collection[str] = (),
    run: str = "",
    seeds: Sequence[int] = (),
    command: str = FILL,
) -> Table:
    """Fill ``spec`` with the runs there are.

    Args:
        find_runs: (model, seeds) -> summaries (``Evaluation.summary`` with the run's facts) of those that exist.
        known: names of the registered memory models; optional rows of other models are left out.
        run: the run spec as the user would name it, where it is not the table's own.
        seeds: the seeds wanted, where they are not the table's own.
        command: template of the command that fills a cell, with {run}, {model} and {seeds}.

    Raises:
        TableError: runs that may not share a cell, or an incomplete summary.
    """
    wanted = tuple(seeds) or spec.seeds
    found: dict[str, list[RunSummary]] = {}
    for row in spec.rows:
        found[row.model] = read_runs(row.model, find_runs(row.model, wanted[:1] if row.deterministic else wanted))
    runs = [summary for row in spec.rows for summary in found[row.model]]
    groups = spec.columns or _groups(runs, spec)
    shown = [row for row in spec.rows if not row.optional or row.model in known or found[row.model]]
    omitted = [row for row in spec.rows if row not in shown]

    def cells(row: RowSpec, subset: str) -> tuple[Cell, ...]:
        asked = wanted[:1] if row.deterministic else wanted
        done = asked if row.deterministic and found[row.model] else {r.seed for r in found[row.model]}
        missing = [seed for seed in asked if seed not in done]
        fill = command.format(run=run or spec.run, model=row.model, seeds=seed_text(missing)) if missing else ""
        return tuple(
            _cell(found[row.model], subset, group.category, metric, paper, fill)
            for group in groups
            for metric, paper in zip(group.metrics, _paper(row, group, subset == spec.paper_subset), strict=True)
        )

    return Table(
        title=spec.title,
        columns=tuple(Column(group=g.label, label=_metric_label(m)) for g in groups for m in g.metrics),
        blocks=tuple(
            Block(
                title=block.label + _sessions(runs, block.subset),
                rows=tuple(Row(label=row.label, group=row.group, cells=cells(row, block.subset)) for row in shown),
            )
            for block in spec.blocks
        ),
        footnotes=(*protocol_notes(runs), *_paper_notes(any(row.paper for row in shown), omitted), *spec.notes),
        omitted=tuple(
            Row(
                label=row.label,
                group=row.group,
                cells=tuple(Cell(paper=p) for g in groups for p in _paper(row, g, True)),
            )
            for row in omitted
        ),
    )


def build_dataset_table(spec: DatasetTable, dataset_by_name: Mapping[str, Dataset], *, command: str = READ) -> Table:
    """Count the sessions and images of the datasets given (paper Table 1); the others keep empty cells."""
    blocks, notes, printed = [], [], any(entry.paper for entry in spec.datasets)
    for entry in spec.datasets:
        dataset = dataset_by_name.get(entry.key)
        rows = []
        for split in ("train", "test"):
            paper = entry.paper.get(split, {})
            counts = _counts(dataset, split, spec.turns) if dataset else {}
            absent = Cell(note=f"the files given hold no {split} part") if dataset else Cell(command=command)
            cells = (_count_cell(counts.get(name), paper.get(name), absent) for name in spec.columns)
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
        footnotes=(*_paper_notes(printed), *([EQUAL] if printed else []), *notes, *spec.notes),
    )


def seed_text(seeds: Sequence[int]) -> str:
    """Seeds as the command line takes them: ``0..4`` for a run of numbers, else ``0,2,5``."""
    if len(seeds) > 1 and list(seeds) == list(range(seeds[0], seeds[-1] + 1)):
        return f"{seeds[0]}..{seeds[-1]}"
    return ",".join(map(str, seeds))


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


def _named(word: str, values: Sequence[int] | Sequence[str]) -> str:
    return f"{word}{'s' if len(values) > 1 else ''} {', '.join(map(str, values))}; " if values else ""


def _paper(row: RowSpec, group: ColumnGroup, printed: bool) -> tuple[float | None, ...]:
    values = row.paper.get(group.category) if printed else None
    return values if values is not None else (None,) * len(group.metrics)


def _paper_notes(printed: bool, omitted: Sequence[RowSpec] = ()) -> list[str]:
    notes = [PAPER_LINES] if printed else []
    if omitted:
        names = ", ".join(row.label for row in omitted)
        notes.append(f"No model here yet: {names}; the paper's values are in --format json.")
    return notes


def _groups(runs: Sequence[RunSummary], spec: ResultsTable) -> tuple[ColumnGroup, ...]:
    """One column group for each category that the runs have, and the overall one."""
    names = dict.fromkeys(name for run in runs for name in run.metrics.get("all", {}) if name != OVERALL)
    groups = [ColumnGroup(category=name, label=name.capitalize(), metrics=spec.metrics) for name in names]
    last = ColumnGroup(category=OVERALL, label="Overall", metrics=tuple(dict.fromkeys((*spec.metrics, "mean"))))
    return (*groups, last) if len(groups) > 1 else (last,)


def _metric_label(metric: str) -> str:
    return "Mean" if metric == "mean" else metric


def _sessions(runs: Sequence[RunSummary], subset: str) -> str:
    counts = sorted({run.count(subset) for run in runs if subset in run.metrics})
    return f" (n = {'-'.join(f'{n:,}' for n in dict.fromkeys([counts[0], counts[-1]]))})" if counts else ""


def _counts(dataset: Dataset, split: Literal["train", "test"], turns: Sequence[int]) -> dict[str, int]:
    """Counts by column; none where the split has no sessions, or no galleries: an absent part was not counted."""
    sessions, images = dataset.turn_counts(split), dataset.gallery_images(split)
    found = {str(n): sessions.get(n, 0) for n in turns} if sessions else {}
    return found | ({"images": images} if images else {})


def _count_cell(value: int | None, paper: int | None, absent: Cell) -> Cell:
    if value is None:
        return absent.model_copy(update={"paper": paper})
    return Cell(value=value, paper=paper, difference=None if paper is None else value - paper)
