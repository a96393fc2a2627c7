"""Tables as data: each cell has its runs, the paper's value and, while it is empty, the command that fills it."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Literal

from manifests.schema import Frozen
from pipeline.analysis.protocol import SHORT

PAPER_LINES = "Lines 'paper' give the paper's value and the difference (ours - paper)."


class Cell(Frozen):
    """One value. ``command`` fills an empty cell or adds missing seeds; ``note``: why no command can fill it."""

    value: int | float | None = None  # mean over the seeds: percent, or a count
    std: float | None = None  # sample standard deviation; None for one seed
    seeds: tuple[int, ...] = ()
    paper: int | float | None = None
    difference: int | float | None = None  # value - paper
    runs: tuple[str, ...] = ()
    store: str = ""
    command: str = ""
    note: str = ""
    low: float | None = None  # 95% interval of ``value``: bootstrap over sessions, all seeds of a session together
    high: float | None = None


class Column(Frozen):
    group: str
    label: str
    kind: Literal["percent", "count", "change"] = "percent"  # change: relative to another row, in percent


class Row(Frozen):
    label: str
    group: str = ""
    cells: tuple[Cell, ...]


class Block(Frozen):
    """Rows under one heading, e.g. for one subset of the test sessions."""

    title: str
    rows: tuple[Row, ...]


class Statement(Frozen):
    """Tests of the difference of two rows over sessions and seeds. ``difference``: a - b in points of the metric."""

    block: str
    metric: str
    a: str
    b: str
    difference: float
    low: float  # 95% interval of the paired bootstrap over sessions
    high: float
    sessions: int
    p_sessions: float
    p_holm: float  # p_sessions, Holm-corrected over the comparisons of its block
    seeds: int = 0  # tested seeds; 0: neither row depends on a seed
    p_seeds: float | None = None
    least_p_seeds: float | None = None  # smallest possible p for this number of seeds
    significant: bool
    seeds_allow: bool = True  # enough seeds for the test over seeds to reach significance

    @property
    def text(self) -> str:
        head = f"{self.a} - {self.b}: {self.difference:+.1f} ({self.low:+.1f} to {self.high:+.1f})"
        parts = [f"over {self.sessions:,} sessions {p_text(self.p_holm)}"]
        if self.p_seeds is not None:
            parts.append(f"over {self.seeds} seed{'s' * (self.seeds != 1)} {p_text(self.p_seeds)}")
        verdict = "significant" if self.significant else "not significant"
        if not self.significant and not self.seeds_allow:
            verdict = "undecided: too few seeds for the test over seeds"
        return f"{head}; {', '.join(parts)}: {verdict}."


def p_text(p: float) -> str:
    """Format a p value: ``p = 0.031``, ``p < 0.001``."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def mean_and_std(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and the sample standard deviation of values by seed, 0 for one seed."""
    return fmean(values), stdev(values) if len(values) > 1 else 0.0


def spread_text(mean: float, std: float | None) -> str:
    """Format a mean over seeds: ``32.7 ± 0.4``, ``32.7`` without a deviation."""
    return f"{mean:.1f} ± {std:.1f}" if std else f"{mean:.1f}"


class Table(Frozen):
    title: str
    columns: tuple[Column, ...]
    blocks: tuple[Block, ...]
    footnotes: tuple[str, ...] = ()
    omitted: tuple[Row, ...] = ()  # the paper's rows of methods not implemented here; only in JSON
    tests: str = ""  # description of the tests behind the statements
    statements: tuple[Statement, ...] = ()

    @property
    def labelled_cells(self) -> list[tuple[str, Cell]]:
        return [(row.label, cell) for block in self.blocks for row in block.rows for cell in row.cells]

    @property
    def notes(self) -> list[str]:
        """Return the distinct reasons of empty cells that no command can fill."""
        return list(dict.fromkeys(f"Empty: {cell.note}." for _, cell in self.labelled_cells if cell.note))

    @property
    def significance(self) -> list[str]:
        """Return the intervals and, if there are comparisons, the test description and one line per comparison."""
        if not self.statements:
            return self.intervals
        blocks = {s.block: None for s in self.statements}
        named = [f"{s.block}: {s.text}" if len(blocks) > 1 else s.text for s in self.statements]
        return [*self.intervals, self.tests, *named]

    @property
    def intervals(self) -> list[str]:
        """Return one line per block: the 95% intervals of its rows in the last column that has any."""
        lines = []
        for block in self.blocks:
            for n in reversed(range(len(self.columns))):
                found = [(row.label, row.cells[n]) for row in block.rows if row.cells[n].low is not None]
                if found:
                    column = " ".join(filter(None, [self.columns[n].group, self.columns[n].label]))
                    spans = "; ".join(f"{label} {cell.low:.1f} to {cell.high:.1f}" for label, cell in found)
                    lines.append(f"95% intervals over sessions, {block.title}, {column}: {spans}.")
                    break
        return lines

    @property
    def commands(self) -> dict[str, str]:
        """Return command -> labels of the rows that it completes, in row order."""
        found: dict[str, dict[str, None]] = {}
        for label, cell in self.labelled_cells:
            if cell.command:
                found.setdefault(cell.command, {})[label] = None
        return {command: ", ".join(labels) for command, labels in found.items()}

    @property
    def traces(self) -> list[str]:
        """Return one line per row with runs: its seeds, run ids and store."""
        found: dict[str, Cell] = {}
        for label, cell in self.labelled_cells:
            if cell.runs:
                found.setdefault(label, cell)
        return [
            f"{label}: {_named('seed', c.seeds)}{_named('run', c.runs)}store {c.store[:SHORT]}"
            for label, c in found.items()
        ]


def _named(word: str, values: Sequence[int] | Sequence[str]) -> str:
    return f"{word}{'s' if len(values) > 1 else ''} {', '.join(map(str, values))}; " if values else ""


def seed_text(seeds: Sequence[int]) -> str:
    """Format seeds for the command line: ``0..4`` for consecutive numbers, else ``0,2,5``."""
    if len(seeds) > 1 and list(seeds) == list(range(seeds[0], seeds[-1] + 1)):
        return f"{seeds[0]}..{seeds[-1]}"
    return ",".join(map(str, seeds))


def paper_notes(printed: bool, omitted: Sequence[str] = ()) -> list[str]:
    """Return footnotes for a table that prints the paper's values; ``omitted``: labels of rows without a model."""
    notes = [PAPER_LINES] if printed else []
    if omitted:
        names = ", ".join(omitted)
        notes.append(f"No model here yet: {names}; the paper's values are in --format json.")
    return notes
