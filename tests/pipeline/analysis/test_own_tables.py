"""Chance, blocks of the same sessions, and which spec a table's name means."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from manifests.ablation_spec import parse_ablation_spec
from manifests.errors import ManifestError
from manifests.leaks import SUBSETS
from manifests.table_spec import parse_table_spec
from pipeline.analysis.own_tables import ablation_table, kind_of_table
from pipeline.analysis.results_table import CHANCE, build_results_table
from pipeline.evaluation.metrics import CUTOFFS, chance, metrics_of
from tests.worlds import world

TABLE: dict[str, Any] = {
    "kind": "results",
    "title": "T",
    "run": "mine",
    "seeds": [0],
    "blocks": [{"subset": "all", "label": "All"}, {"subset": "no pair seen", "label": "Clean"}],
    "rows": [{"model": "lstm", "label": "LSTM"}],
}


@pytest.mark.parametrize("size", [1, 4, 7, 60])
def test_chance_is_the_mean_over_all_places_of_the_target(size: int) -> None:
    expected = metrics_of(np.arange(1, size + 1))
    for metric in (*(f"R@{k}" for k in CUTOFFS), "MRR", "mean"):
        assert chance(size, metric) == pytest.approx(expected[metric])


def test_a_block_ends_with_chance_over_the_categories_of_its_sessions(summary: Callable[..., Any]) -> None:
    run = summary("lstm", 0, 40.0)
    table = build_results_table(parse_table_spec(TABLE, "t.toml"), lambda row, seeds: [run])
    last = table.blocks[0].rows[-1]
    assert last.label == CHANCE and last.cells[0].command == ""
    sizes = [run["galleries"][name]["images"] for name in run["metrics"]["all"] if name != "overall"]
    overall = [c.value for c, column in zip(last.cells, table.columns, strict=True) if column.group == "Overall"]
    assert overall[0] == pytest.approx(np.mean([100 * min(5, n) / n for n in sizes]))


def test_without_runs_there_is_no_chance_line(summary: Callable[..., Any]) -> None:
    table = build_results_table(parse_table_spec(TABLE, "t.toml"), lambda row, seeds: [])
    assert [row.label for row in table.blocks[0].rows] == ["LSTM"]


def test_a_block_of_the_same_sessions_is_printed_once(summary: Callable[..., Any]) -> None:
    run = summary("lstm", 0, 40.0)
    run["metrics"]["no pair seen"] = run["metrics"]["all"]
    table = build_results_table(parse_table_spec(TABLE, "t.toml"), lambda row, seeds: [run])
    assert [block.title.partition(" (")[0] for block in table.blocks] == ["All"]
    assert "The same sessions as in a block above, so left out: Clean." in table.footnotes


def test_the_kind_of_a_name(tmp_path: Path) -> None:
    for name, text in (("t", 'kind = "results"'), ("a", "[[grid]]"), ("r", 'name = "r"')):
        (tmp_path / f"{name}.toml").write_text(text)
    kinds = [kind_of_table(str(tmp_path / f"{name}.toml")) for name in "tar"]
    assert kinds == ["table", "ablation", "run"]
    names = [kind_of_table(name) for name in ("1", "demo", "table5", "shoes-caption")]
    assert names == ["table", "table", "ablation", "run"]
    with pytest.raises(ManifestError, match="did you mean 'shoes-caption'"):
        kind_of_table("shoes-captoin")


def test_an_ablation_has_a_row_per_point_and_view() -> None:
    values = {
        "name": "mine",
        "run": "r",
        "seeds": [0, 1],
        "views": [{"last": 1}, {}],
        "grid": [{"models": ["lstm"], "options": {"hidden": [3, 4]}}, {"models": ["avg"]}],
    }
    subsets = {name: {s.id for s in world().split("test")} for name in SUBSETS}
    table = ablation_table(parse_ablation_spec(values, "a.toml"), world(), subsets)
    assert [row.label for row in table.rows[:2]] == ["1. lstm hidden=3, last 1", "1. lstm hidden=3"]
    assert len(table.rows) == 6 and table.rows[-1].deterministic and len(table.blocks) == 1 and not table.notes
    grids = [{"models": ["gru", "lstm"], "options": {"hidden": [3, 4], "dropout": 0.1}, "training": {"scale": 2.0}}]
    table = ablation_table(parse_ablation_spec({**values, "views": [{}], "grid": grids}, "a.toml"), world(), subsets)
    assert [row.label for row in table.rows] == [
        f"{n}. {m} hidden={k}" for n, m, k in zip("1234", ("gru", "gru", "lstm", "lstm"), "3434", strict=True)
    ]
    assert table.notes == ("All rows: dropout=0.1 training.scale=2.0.",)


def test_mean_average_precision_is_a_column_without_chance(summary: Callable[..., Any]) -> None:
    run = summary("lstm", 0, 40.0)
    for categories in run["metrics"].values():
        for metrics in categories.values():
            metrics["mAP@10"] = 12.5
    spec = parse_table_spec({**TABLE, "metrics": ["R@5", "mAP@10"]}, "t.toml")
    table = build_results_table(spec, lambda row, seeds: [run])
    places = [n for n, column in enumerate(table.columns) if column.label == "mAP@10"]
    first, *_, last = table.blocks[0].rows
    assert places and {first.cells[n].value for n in places} == {12.5}
    assert last.label == CHANCE and {last.cells[n].value for n in places} == {None}
    with pytest.raises(ManifestError, match="mAP@7"):
        parse_table_spec({**TABLE, "metrics": ["mAP@7"]}, "t.toml")
