"""Table specs: rows and columns of a table, the runs that fill them, and the paper's values."""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Any, Literal

from pydantic import Field

from manifests.errors import ManifestError, Problem, Problems, nearest
from manifests.load import read_toml, shipped, spec_path
from manifests.options import parse_file
from manifests.protocols import Protocol
from manifests.schema import Component, Frozen, Split

Metric = Annotated[str, Field(pattern=r"^(R@[1-9][0-9]*|MRR|mean)$")]
ColumnMetric = Annotated[str, Field(pattern=r"^(R@[1-9][0-9]*|MRR|mean|mAP@(5|10|25|50))$")]  # mAP: without intervals


class DatasetEntry(Frozen):
    """Dataset of a statistics table: how to load it, and the paper's numbers by split and column."""

    label: str
    dataset: Component
    paper: dict[Split, dict[str, int]] = Field(default_factory=dict)  # columns "2", "3", "4" (turns) and "images"

    @property
    def key(self) -> str:
        """Name of the dataset for the table builder."""
        return self.dataset.name


class DatasetTable(Frozen):
    """Statistics of datasets (paper Table 1): sessions by number of turns, and images."""

    kind: Literal["dataset"]
    title: str
    turns: tuple[int, ...] = (2, 3, 4)
    datasets: tuple[DatasetEntry, ...]
    notes: tuple[str, ...] = ()

    @property
    def columns(self) -> tuple[str, ...]:
        return (*(str(n) for n in self.turns), "images")

    def check(self, problems: Problems) -> None:
        """Report a table without datasets, and paper values without a column."""
        if not self.datasets:
            problems.add("key datasets", "empty", "a table needs one at least")
        for number, entry in enumerate(self.datasets):
            for split, values in entry.paper.items():
                place = f"key datasets.{number}.paper.{split}"
                for name in values.keys() - set(self.columns):
                    problems.add(place, f"no column {name!r}", nearest(name, self.columns))


class ColumnGroup(Frozen):
    """Columns of one category (or of "overall"), one per metric.

    With ``relative_to``, the key of a row, they show the change against that row in percent, in category ``of``;
    ``category`` then only names the paper's values.
    """

    category: str
    label: str
    metrics: tuple[ColumnMetric, ...] = Field(min_length=1)
    relative_to: str = ""
    of: str = "overall"

    @property
    def source(self) -> str:
        """Category of the values."""
        return self.of if self.relative_to else self.category


class BlockSpec(Frozen):
    """Block of a results table: the same rows over one subset of the test sessions."""

    subset: str
    label: str


class RowSpec(Frozen):
    """Row of one method: the memory model that fills it, and the paper's values by category.

    ``options`` and ``training`` override those of the run spec for the model; ``last``: only this number of last
    turns is used (paper Table 4). Several rows of one model need a ``key`` each.
    """

    model: str
    label: str
    key: str = ""
    options: dict[str, Any] = Field(default_factory=dict)
    training: dict[str, Any] = Field(default_factory=dict)
    last: int | None = Field(None, ge=1)
    group: str = ""
    deterministic: bool = False  # no randomness: a single run, of the first seed
    optional: bool = False  # shown only if a model of this name, or runs of it, exist
    paper: dict[str, tuple[float, ...]] = Field(default_factory=dict)

    @property
    def name(self) -> str:
        """Name of this row for other rows and columns."""
        return self.key or self.model


class Comparison(Frozen):
    """Tests of one row against others, Holm-corrected by themselves."""

    tested: str
    against: tuple[str, ...] = Field(min_length=1)


class ResultsTable(Frozen):
    """Recall of memory models (paper Tables 2 to 5). Default of ``columns``: the categories of the runs."""

    kind: Literal["results"]
    title: str
    run: str  # run spec of the runs that fill the table
    ablation: str = ""  # ablation of these runs; empty: the run spec's own models
    turns: int | None = Field(None, ge=1)  # only test sessions of exactly this many turns
    tested: str = ""  # row whose difference from the others is tested; empty: no test
    tested_metric: Metric = "mean"  # of "overall"
    against: tuple[str, ...] = ()  # rows that ``tested`` is compared with; empty: all but those of ``comparisons``
    comparisons: tuple[Comparison, ...] = ()  # further tests; they do not change those of ``tested``
    columns: tuple[ColumnGroup, ...] = ()
    metrics: tuple[ColumnMetric, ...] = ("R@5", "R@8")  # of each category, without ``columns``
    blocks: tuple[BlockSpec, ...] = (BlockSpec(subset="all", label="All sessions"),)
    paper_subset: str = "all"  # block of the paper's values
    seeds: tuple[int, ...] = Field((0, 1, 2, 3, 4), min_length=1)
    rows: tuple[RowSpec, ...]
    notes: tuple[str, ...] = ()

    def check(self, problems: Problems) -> None:
        """Report problems across keys: repeated rows, columns, blocks or seeds, paper values without a column."""
        if not self.rows:
            problems.add("key rows", "empty", "a table needs one at least")
        for kind, names in (
            ("rows", [row.name for row in self.rows]),
            ("columns", [group.category for group in self.columns]),
            ("blocks", [block.subset for block in self.blocks]),
            ("seeds", list(self.seeds)),
        ):
            for name, count in Counter(names).items():
                if count > 1:
                    problems.add(f"key {kind}", f"{name!r} appears {count} times", "each may appear once")
        names = [row.name for row in self.rows]
        places = [("tested", (*filter(None, [self.tested]),)), ("against", self.against)]
        for n, one in enumerate(self.comparisons):
            places += [(f"comparisons.{n}.tested", (one.tested,)), (f"comparisons.{n}.against", one.against)]
        for key, wanted in places:
            for name in wanted:
                if name not in names:
                    problems.add(f"key {key}", f"no row {name!r}", nearest(name, names))
        for number, group in enumerate(self.columns):
            if group.relative_to and group.relative_to not in names:
                what = f"no row {group.relative_to!r}"
                problems.add(f"key columns.{number}.relative_to", what, nearest(group.relative_to, names))
        widths = {group.category: len(group.metrics) for group in self.columns}
        for number, row in enumerate(self.rows):
            for category, values in row.paper.items():
                place = f"key rows.{number}.paper.{category}"
                if category not in widths:
                    problems.add(place, "no column group of this category", nearest(category, widths))
                elif len(values) != widths[category]:
                    problems.add(place, f"{len(values)} values", f"one for each of its {widths[category]} metrics")


class Section(Frozen):
    """Section of a leaderboard: the models of a run spec, on a clean split of its dataset ("": all sessions)."""

    label: str
    run: str
    protocol: Protocol | Literal[""] = ""

    @property
    def overrides(self) -> tuple[str, ...]:
        """Override of the run spec that selects the split."""
        return (f"dataset.protocol={self.protocol}",) if self.protocol else ()


class Leaderboard(Frozen):
    """Methods ranked on several splits, the best first, each tested against the first."""

    kind: Literal["leaderboard"]
    title: str
    metrics: tuple[ColumnMetric, ...] = Field(min_length=1)  # of "overall"
    ranked_by: Metric = "mean"
    seeds: tuple[int, ...] = Field((0, 1, 2, 3, 4, 5), min_length=1)
    presets: tuple[str, ...] = ()  # rows of every section, besides the models of its run spec
    notes: tuple[str, ...] = ()  # paragraphs below the title
    sections: tuple[Section, ...] = Field(min_length=1)

    def check(self, problems: Problems) -> None:
        """Report an order by a metric that has no column."""
        if self.ranked_by not in self.metrics:
            problems.add("key ranked_by", f"no metric {self.ranked_by!r}", nearest(self.ranked_by, self.metrics))


TableSpec = DatasetTable | ResultsTable | Leaderboard
_KINDS: dict[str, type[DatasetTable] | type[ResultsTable] | type[Leaderboard]] = {
    "dataset": DatasetTable,
    "results": ResultsTable,
    "leaderboard": Leaderboard,
}


def table_names() -> tuple[str, ...]:
    """Return the names of the tables shipped with the project."""
    return tuple(shipped("tables"))


def load_table_spec(name: str) -> TableSpec:
    """Load a table spec by shipped name ("1", "2", ...) or path. Raise ManifestError with every problem of the file."""
    path = spec_path(name, "tables")
    return parse_table_spec(read_toml(path), str(path))


def parse_table_spec(values: dict[str, Any], file: str) -> TableSpec:
    """Parse the TOML values of ``file`` as a table spec. Raise ManifestError with every problem found."""
    kind = values.get("kind")
    if not isinstance(kind, str) or kind not in _KINDS:
        what = f"unknown kind of table {kind!r}" if "kind" in values else "missing"
        raise ManifestError([Problem(file, "key kind", what, nearest(str(kind), _KINDS))])
    return parse_file(_KINDS[kind], values, file)
