"""Ablation specs: the numbered grid, every problem at once, and the shipped ones against the tables they fill."""

from __future__ import annotations

from typing import Any

import pytest

from manifests.ablation_spec import (
    AblationSpec,
    chosen_points,
    load_ablation_spec,
    parse_ablation_spec,
)
from manifests.errors import ManifestError
from manifests.figure_spec import load_figure_spec
from manifests.load import load_spec, shipped
from manifests.table_spec import ResultsTable, load_table_spec, table_names
from manifests.views import View
from pipeline.analysis.ablation.plan import tasks_of
from pipeline.analysis.tables import point_of
from tests.conftest import REPOSITORY

GRID = [
    {"models": ["avg", "ewma"]},
    {"models": ["absent"], "optional": True},
    {"models": ["cm_ntm"], "options": {"stages": [1, 2], "hidden": 8}, "training": {"scale": [1.0, 20.0]}},
]


def spec(**changes: Any) -> AblationSpec:
    return parse_ablation_spec({"name": "mine", "run": "demo", "grid": GRID, **changes}, "a.toml")


def test_the_grid_is_a_numbered_product() -> None:
    points = spec().points()
    assert [(p.number, p.label) for p in points] == [
        (1, "avg"),
        (2, "ewma"),
        (3, "absent"),
        (4, "cm_ntm stages=1 hidden=8 training.scale=1.0"),
        (5, "cm_ntm stages=1 hidden=8 training.scale=20.0"),
        (6, "cm_ntm stages=2 hidden=8 training.scale=1.0"),
        (7, "cm_ntm stages=2 hidden=8 training.scale=20.0"),
    ]
    assert [p.number for p in spec().points(known=["avg", "ewma", "cm_ntm"])] == [1, 2, 4, 5, 6, 7]
    assert [p.number for p in chosen_points(points, [6, 2])] == [2, 6]
    assert chosen_points(points, []) == points
    with pytest.raises(ManifestError, match="--only: 8: the grid has no point of this number"):
        chosen_points(points, [2, 8])


def test_the_default_seeds_let_the_exact_test_decide() -> None:
    assert len(spec().seeds) >= 5
    assert 2 / 2 ** len(spec().seeds) < 0.05


def test_all_problems_are_found_at_once() -> None:
    with pytest.raises(ManifestError) as caught:
        spec(seeds=[1, 1], grid=[{"models": ["avg"]}, {"models": ["avg"]}])
    text = str(caught.value)
    assert "key seeds: 1 appears 2 times" in text
    assert "points 1 and 2 are both avg" in text
    with pytest.raises(ManifestError, match=r"key grids: unknown key \(did you mean 'grid'"):
        spec(grids=[])
    with pytest.raises(ManifestError, match="key grid: empty"):
        spec(grid=[])


def test_wrong_options_of_every_point_are_reported() -> None:
    wrong = [
        {"models": ["cm_ntm"], "options": {"stages": [0, 2], "slot": 4}},
        {"models": ["lstn"]},
        {"models": ["lstm"], "training": {"epoch": 3}},
    ]
    with pytest.raises(ManifestError) as caught:
        tasks_of(spec(grid=wrong), load_spec("demo"))
    text = str(caught.value)
    for part in (
        "point 1 (cm_ntm stages=0 slot=4)",
        "point 2 (cm_ntm stages=2 slot=4)",
        "did you mean 'slots'?",
        "did you mean 'lstm'?",
        "did you mean 'epochs'?",
    ):
        assert part in text


def test_view_names() -> None:
    assert [View().name, View(turns=4).name, View(turns=4, last=2).name, View(last=1).name] == [
        "",
        "turns4",
        "turns4-last2",
        "last1",
    ]
    assert View(turns=4, last=4).name == View(turns=4).name


@pytest.mark.parametrize("name", shipped("ablations"))
def test_shipped_ablations_name_a_run_spec_and_real_options(name: str) -> None:
    ablation = load_ablation_spec(name)
    assert ablation.name == name and ablation.title
    assert ablation.run in shipped("runs")
    assert len(ablation.seeds) >= 5
    assert tasks_of(ablation, load_spec(ablation.run))


@pytest.mark.parametrize("name", table_names())
def test_every_row_of_a_shipped_table_is_a_point_of_its_ablation(name: str) -> None:
    table = load_table_spec(name)
    if not isinstance(table, ResultsTable) or not table.ablation:
        pytest.skip("a table without an ablation")
    ablation, run = load_ablation_spec(table.ablation), load_spec(table.run)
    assert ablation.run == table.run and ablation.seeds == table.seeds
    views = {view.name for view in ablation.views}
    for row in table.rows:
        assert point_of(ablation, run, row) is not None, row.name
        assert View(turns=table.turns, last=row.last).name in views, row.name


@pytest.mark.parametrize("name", shipped("figures"))
def test_shipped_figures_name_an_ablation_that_measures_time(name: str) -> None:
    figure = load_figure_spec(name)
    ablation = load_ablation_spec(figure.ablation)
    assert ablation.timing and ablation.run == figure.run
    for point in ablation.points():
        assert {figure.series, figure.size} <= set(point.options)


def test_a_run_spec_is_no_figure() -> None:
    with pytest.raises(ManifestError, match=r"key dataset: a run spec, not a figure's .*--spec") as caught:
        load_figure_spec(str(REPOSITORY / "manifests" / "specs" / "runs" / "demo.toml"))
    assert len(caught.value.problems) == 1
