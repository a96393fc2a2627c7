"""Table specs: the shipped ones, and every problem of a wrong one at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from manifests.errors import ManifestError
from manifests.load import shipped
from manifests.table_spec import DatasetTable, ResultsTable, load_table_spec, parse_table_spec, table_names

ROW = {"model": "avg", "label": "A"}


def results(**changes: Any) -> dict[str, Any]:
    return {"kind": "results", "title": "T", "run": "r", "rows": [ROW], **changes}


def problems(values: dict[str, Any]) -> list[str]:
    with pytest.raises(ManifestError) as caught:
        parse_table_spec(values, "t.toml")
    assert caught.value.exit_code == 4
    return [str(p) for p in caught.value.problems]


def test_the_papers_tables_are_shipped() -> None:
    assert {"1", "2", "3", "4", "5"} <= set(table_names())
    table = load_table_spec("2")
    assert isinstance(table, ResultsTable)
    assert [block.subset for block in table.blocks] == ["all", "last pair unseen", "no pair seen"]
    paper = {row.model: row.paper for row in table.rows}
    assert paper["cm_ntm"]["overall"] == (45.7, 50.4, 48.1)
    assert paper["last"] == {}


@pytest.mark.parametrize("name", table_names())
def test_shipped_tables_name_shipped_runs(name: str) -> None:
    spec = load_table_spec(name)
    assert spec.title
    if isinstance(spec, ResultsTable):
        assert spec.run in shipped("runs")


@pytest.mark.parametrize("name", ["2", "3"])
def test_the_papers_means_follow_from_its_columns(name: str) -> None:
    """A slip in copying a value shows: Overall is the mean of the categories, and Mean that of R@5 and R@8.

    The paper's Overall of the two earlier systems is not the mean of its own columns; it stands as printed.
    """
    spec = load_table_spec(name)
    assert isinstance(spec, ResultsTable)
    for row in spec.rows:
        for place in (0, 1) if len(row.paper) > 1 and not row.optional else ():
            categories = [values[place] for category, values in row.paper.items() if category != "overall"]
            assert sum(categories) / 3 == pytest.approx(row.paper["overall"][place], abs=0.11), row.label
        if row.paper:
            first, second, mean = row.paper["overall"]
            assert (first + second) / 2 == pytest.approx(mean, abs=0.11), row.label


@pytest.mark.parametrize(("name", "reference"), [("4", 79.3), ("5", 27.5)])
def test_the_papers_changes_follow_from_its_means(name: str, reference: float) -> None:
    """Tables 4 and 5 print the mean and its change against one row; a slip in copying either shows."""
    spec = load_table_spec(name)
    assert isinstance(spec, ResultsTable)
    base = next(row for row in spec.rows if row.name == spec.columns[-1].relative_to)
    assert base.paper["overall"][-1] == reference and "change" not in base.paper
    printed = [row for row in spec.rows if "change" in row.paper]
    assert len(printed) == {"4": 9, "5": 4}[name]  # six rows of Table 4, three of them beside both readings
    for row in [base, *printed]:
        *recalls, mean = row.paper["overall"]
        assert sum(recalls) / 2 == pytest.approx(mean, abs=0.11), row.label
        for place, recall in enumerate(recalls):
            categories = [values[place] for key, values in row.paper.items() if key not in ("overall", "change")]
            assert not categories or sum(categories) / 3 == pytest.approx(recall, abs=0.11), row.label
        if row is not base:
            assert 100 * (mean / reference - 1) == pytest.approx(row.paper["change"][0], abs=0.11), row.label


def test_a_spec_is_read_from_a_file_of_the_user(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('kind = "results"\ntitle = "T"\nrun = "r"\nrows = [{ model = "avg", label = "A" }]\n')
    spec = load_table_spec(str(path))
    assert isinstance(spec, ResultsTable)
    assert spec.blocks[0].subset == "all"
    path.write_text("kind = ]")
    with pytest.raises(ManifestError, match=r"mine\.toml: not valid TOML.*line 1"):
        load_table_spec(str(path))
    with pytest.raises(ManifestError, match=r"no table spec of this name.*known: 1, 2"):
        load_table_spec("22")


def test_all_problems_are_found_at_once() -> None:
    row = {**ROW, "determinstic": True}
    found = problems(results(title=3, rows=[row], blocks=[{"subset": "all"}], metrics=["R5"], seeds=[]))
    assert len(found) == 5, found
    text = "\n".join(found)
    assert "key rows.0.determinstic: unknown key (did you mean 'deterministic'?" in text
    for place in ("key title: found 3", "key blocks.0.label: missing", "key metrics.0: found 'R5'", "key seeds"):
        assert f"t.toml: {place}" in text


def test_what_no_single_key_shows() -> None:
    column = {"category": "dress", "label": "Dress", "metrics": ["R@5", "R@8"]}
    found = problems(
        results(
            columns=[column, column],
            rows=[{**ROW, "paper": {"dress": [1.0], "shrit": [1.0, 2.0]}}, ROW],
            seeds=[0, 0],
            blocks=[{"subset": "all", "label": "A"}] * 2,
        )
    )
    assert found == [
        "t.toml: key rows: 'avg' appears 2 times (each may appear once)",
        "t.toml: key columns: 'dress' appears 2 times (each may appear once)",
        "t.toml: key blocks: 'all' appears 2 times (each may appear once)",
        "t.toml: key seeds: 0 appears 2 times (each may appear once)",
        "t.toml: key rows.0.paper.dress: 1 values (one for each of its 2 metrics)",
        "t.toml: key rows.0.paper.shrit: no column group of this category (known: dress)",
    ]


def test_kinds_are_told_apart() -> None:
    assert problems({"title": "T"})[0].startswith("t.toml: key kind: missing")
    assert "unknown kind of table 'result' (did you mean 'results'?" in problems({"kind": "result"})[0]
    values = {"kind": "dataset", "title": "T", "datasets": [{"label": "D", "dataset": {"name": "d", "folder": "f"}}]}
    spec = parse_table_spec(values, "t.toml")
    assert isinstance(spec, DatasetTable)
    assert spec.datasets[0].key == "d"
    assert spec.datasets[0].dataset.options == {"folder": "f"}
    values["datasets"][0]["paper"] = {"train": {"image": 3}}  # type: ignore[index]
    assert problems(values) == [
        "t.toml: key datasets.0.paper.train: no column 'image' (did you mean 'images'? known: 2, 3, 4, images)"
    ]
