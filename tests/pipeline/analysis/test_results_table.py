"""What a cell has: means, spread, the paper's value, its runs, or the command that fills it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from manifests.table_spec import DatasetTable, ResultsTable, RowSpec, load_table_spec, parse_table_spec, table_names
from pipeline.analysis.cells import Row, Table, seed_text
from pipeline.analysis.protocol import TableError
from pipeline.analysis.results_table import build_results_table
from pipeline.analysis.tables import build_dataset_table

Summaries = Callable[..., dict[str, Any]]
SPEC: dict[str, Any] = {
    "kind": "results",
    "title": "T",
    "run": "mine",
    "seeds": [0, 1, 2],
    "columns": [
        {"category": "dress", "label": "Dress", "metrics": ["R@5", "R@8"]},
        {"category": "overall", "label": "Overall", "metrics": ["R@5", "mean"]},
    ],
    "blocks": [{"subset": "all", "label": "All"}, {"subset": "no pair seen", "label": "Clean"}],
    "rows": [
        {"model": "avg", "label": "AVG", "deterministic": True, "paper": {"dress": [25.6, 32.5]}},
        {"model": "lstm", "label": "LSTM", "paper": {"overall": [44.6, 47.4]}},
        {"model": "cfir", "label": "CFIR", "optional": True, "paper": {"dress": [29.8, 33.5]}},
    ],
}


def spec(**changes: Any) -> ResultsTable:
    found = parse_table_spec({**SPEC, **changes}, "t.toml")
    assert isinstance(found, ResultsTable)
    return found


def finder(*summaries: dict[str, Any]) -> Callable[[RowSpec, Sequence[int]], list[dict[str, Any]]]:
    return lambda row, seeds: [s for s in summaries if s["model"] == row.model and s["seed"] in (None, *seeds)]


def row(table: Table, label: str, block: int = 0) -> Row:
    return next(r for r in table.blocks[block].rows if r.label == label)


def test_a_cell_has_mean_spread_paper_difference_and_trace(summary: Summaries) -> None:
    runs = [summary("lstm", seed, base) for seed, base in ((2, 44.0), (0, 40.0), (1, 42.0))]
    table = build_results_table(spec(), finder(*runs))
    cell = row(table, "LSTM").cells[2]
    assert (cell.value, cell.std, cell.seeds) == (42.5, 2.0, (0, 1, 2))
    assert cell.paper == 44.6
    assert cell.difference == pytest.approx(42.5 - 44.6)
    assert cell.runs == ("lstm00000000", "lstm10000000", "lstm20000000")
    assert (cell.store, cell.command, cell.note) == ("5" * 64, "", "")
    assert row(table, "LSTM").cells[0].difference is None  # the paper printed nothing there


def test_the_paper_stands_only_beside_the_same_sessions(summary: Summaries) -> None:
    table = build_results_table(spec(), finder(summary("lstm", 0, 40.0)))
    clean = row(table, "LSTM", block=1)
    assert [cell.paper for cell in clean.cells] == [None] * 4
    assert clean.cells[0].value == 32.0
    assert [block.title for block in table.blocks] == ["All (n = 200)", "Clean (n = 66)"]


def test_one_seed_has_no_spread_and_the_missing_ones_have_a_command(summary: Summaries) -> None:
    table = build_results_table(spec(), finder(summary("lstm", 1, 40.0)))
    cell = row(table, "LSTM").cells[0]
    assert (cell.value, cell.std) == (40.0, None)
    assert cell.command == "fashion-ntm run mine --model lstm --seeds 0,2"


def test_an_empty_cell_gives_its_command() -> None:
    table = build_results_table(spec(), finder(), run="mine --data 'my data'")
    for label, seeds in (("AVG", "0"), ("LSTM", "0..2")):
        for cell in row(table, label).cells:
            assert cell.value is None
            assert cell.command == f"fashion-ntm run mine --data 'my data' --model {label.lower()} --seeds {seeds}"
    assert row(table, "AVG").cells[0].paper == 25.6
    assert list(table.commands.values()) == ["AVG", "LSTM"]
    assert table.traces == []


def test_a_method_without_randomness_needs_one_run(summary: Summaries) -> None:
    for seed in (0, None):
        table = build_results_table(spec(), finder(summary("avg", seed, 20.0)))
        cell = row(table, "AVG").cells[0]
        assert (cell.value, cell.std, cell.command) == (20.0, None, "")
    asked = build_results_table(spec(), finder(summary("avg", 7, 20.0)), seeds=[7, 8])
    assert row(asked, "AVG").cells[0].seeds == (7,)


def test_the_papers_row_of_an_unknown_model_is_left_out_but_kept_as_data(summary: Summaries) -> None:
    table = build_results_table(spec(), finder())
    assert [r.label for r in table.blocks[0].rows] == ["AVG", "LSTM"]
    assert [(r.label, r.cells[0].paper) for r in table.omitted] == [("CFIR", 29.8)]
    assert any("CFIR" in note and "--format json" in note for note in table.footnotes)
    for found in (
        build_results_table(spec(), finder(), known=["cfir"]),
        build_results_table(spec(), finder(summary("cfir", 0, 30.0))),
    ):
        assert found.omitted == ()
        assert row(found, "CFIR").cells[0].paper == 29.8


def test_runs_that_may_not_share_a_cell_are_refused(summary: Summaries) -> None:
    with pytest.raises(TableError, match="both of seed 1"):
        build_results_table(spec(), finder(summary("lstm", 1, 1.0), summary("lstm", 1, 2.0, run="other")))
    with pytest.raises(TableError, match=r"different stores.*555555555555.*777777777777"):
        build_results_table(spec(), finder(summary("lstm", 0, 1.0), summary("lstm", 1, 2.0, store="7" * 64)))
    broken = summary("lstm", 0, 1.0)
    del broken["store"]
    with pytest.raises(TableError, match="run lstm00000000 has no usable store: evaluate"):
        build_results_table(spec(), finder(broken))


def test_a_subset_that_the_runs_lack_is_explained(summary: Summaries) -> None:
    run = summary("avg", 0, 20.0)
    del run["metrics"]["no pair seen"]
    table = build_results_table(spec(), finder(run))
    assert row(table, "AVG", block=1).cells[0].note == "the runs have no R@5 of these sessions (dress, no pair seen)"
    assert row(table, "AVG", block=1).cells[0].value is None
    assert table.blocks[1].title == "Clean"


def test_columns_follow_the_runs_when_the_spec_names_none(summary: Summaries) -> None:
    rows = [{"model": "lstm", "label": "LSTM"}]
    table = build_results_table(spec(columns=[], metrics=["R@1"], rows=rows), finder(summary("lstm", 0, 40.0)))
    assert [(c.group, c.label) for c in table.columns] == [
        ("Dress", "R@1"),
        ("Shirt", "R@1"),
        ("Overall", "R@1"),
        ("Overall", "Mean"),
    ]


def test_footnotes_state_the_protocol(summary: Summaries) -> None:
    changes = {
        "skipped": {f"s{n}": "no row" for n in range(7)},
        "galleries": {"dress": {"images": 1499, "dropped": ["x"]}},
        "contaminated_on": ["mt_fashioniq"],
    }
    notes = "\n".join(build_results_table(spec(), finder(summary("lstm", 0, 40.0, **changes))).footnotes)
    for part in (
        "Caption gallery",
        "reference images kept",
        "ties count against the model",
        "dress 1,499; 1 without a feature",
        "mean of the categories",
        "caption+gated, store 555555555555",
        "CONTAMINATED",
        "Mean ± standard deviation",
        "7 of 207 (s0, s1, s2, s3, s4, ...)",
    ):
        assert part in notes
    clean = build_results_table(spec(), finder(summary("lstm", 0, 4.0, gallery="image", averaging="sessions")))
    notes = "\n".join(clean.footnotes)
    for part in ("Image gallery.", "all sessions together", "not marked as contaminated on mt_fashioniq"):
        assert part in notes


def test_rows_of_different_stores_are_pointed_out(summary: Summaries) -> None:
    table = build_results_table(spec(), finder(summary("avg", 0, 1.0), summary("lstm", 0, 1.0, store="7" * 64)))
    assert "The rows come from different stores: they do not compare memory models alone." in table.footnotes


def test_seeds_are_written_as_the_command_line_reads_them() -> None:
    assert [seed_text(s) for s in ([3], [0, 1, 2], [0, 2, 3], [4, 1])] == ["3", "0..2", "0,2,3", "4,1"]


@pytest.mark.parametrize("name", [name for name in table_names() if name != "leaderboard"])  # it has no rows
def test_every_shipped_table_can_be_built_before_anything_is_run(name: str) -> None:
    spec = load_table_spec(name)
    table = (
        build_dataset_table(spec, {}) if isinstance(spec, DatasetTable) else build_results_table(spec, lambda *_: [])
    )
    cells = [cell for block in table.blocks for r in block.rows for cell in r.cells]
    assert cells
    assert all(cell.value is None and cell.command.startswith("fashion-ntm") for cell in cells)
