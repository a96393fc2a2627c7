"""One table, five renderings. Golden files: set FASHION_NTM_UPDATE_GOLDEN=1 to write them anew, then read the diff."""

from __future__ import annotations

import csv
import io
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from manifests.errors import ManifestError
from manifests.table_spec import ResultsTable, RowSpec, parse_table_spec
from pipeline.analysis.cells import Block, Cell, Column, Row, Table
from pipeline.analysis.render import CSV_FIELDS, FORMATS, latex_text, paper_text, render, to_text, value_text
from pipeline.analysis.results_table import build_results_table

GOLDEN = Path(__file__).parent / "golden"
PERCENT, COUNT = Column(group="", label="R@5"), Column(group="", label="n", kind="count")
SPEC = {
    "kind": "results",
    "title": "Table 2. Multi-turn FashionIQ",
    "run": "caption",
    "seeds": [0, 1, 2],
    "columns": [
        {"category": "dress", "label": "Dress", "metrics": ["R@5", "R@8"]},
        {"category": "overall", "label": "Overall", "metrics": ["R@5", "R@8", "mean"]},
    ],
    "blocks": [{"subset": "all", "label": "All sessions"}, {"subset": "no pair seen", "label": "No pair seen"}],
    "rows": [
        {
            "model": "avg",
            "label": "ST + avg(all turns)",
            "group": "Single-turn",
            "deterministic": True,
            "paper": {"dress": [25.6, 32.5], "overall": [28.2, 34.3, 31.3]},
        },
        {"model": "cfir", "label": "CFIR", "optional": True, "paper": {"dress": [29.8, 33.5]}},
        {"model": "lstm", "label": "ST + LSTM", "group": "Multi-turn", "paper": {"dress": [47.8, 52.5]}},
        {"model": "v_ntm", "label": "ST + v-NTM", "group": "Multi-turn"},
        {
            "model": "cm_ntm",
            "label": "FashionNTM (CM-NTM)",
            "group": "Multi-turn",
            "paper": {"overall": [45.7, 50.4, 48.1]},
        },
    ],
}


@pytest.fixture
def table(summary: Callable[..., dict[str, Any]]) -> Table:
    """A row of one run, a row of three seeds, a row of one of three seeds, and an empty row."""
    runs = [summary("avg", 0, 21.5), summary("v_ntm", 1, 33.25)]
    runs += [summary("lstm", seed, 40 + 2 * seed) for seed in range(3)]
    spec = parse_table_spec(SPEC, "t.toml")
    assert isinstance(spec, ResultsTable)

    def find_runs(row: RowSpec, seeds: Sequence[int]) -> list[dict[str, Any]]:
        return [run for run in runs if run["model"] == row.model and run["seed"] in seeds]

    return build_results_table(spec, find_runs)


def check(name: str, text: str) -> None:
    path = GOLDEN / name
    if os.environ.get("FASHION_NTM_UPDATE_GOLDEN"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


@pytest.mark.parametrize("form", FORMATS)
def test_golden(table: Table, form: str) -> None:
    check(f"table.{form}", render(table, form))


@pytest.mark.parametrize("width", [100, 70])
def test_golden_terminal(table: Table, width: int) -> None:
    check(f"terminal-{width}.txt", to_text(table, width))


@pytest.mark.parametrize("width", [200, 100, 70, 45, 20])
def test_a_narrow_terminal_cuts_no_number(table: Table, width: int) -> None:
    text = to_text(table, width)
    for cell in (c for block in table.blocks for row in block.rows for c in row.cells if c.value is not None):
        assert value_text(cell, PERCENT) in text
    body = text.split("Caption gallery")[0].splitlines()
    assert width < 45 or max(map(len, body)) <= width


def test_json_comes_back_as_the_same_table(table: Table) -> None:
    assert Table.model_validate_json(render(table, "json")) == table


def test_csv_holds_every_cell_in_full(table: Table) -> None:
    lines = list(csv.DictReader(io.StringIO(render(table, "csv"))))
    rows = [(block, row) for block in table.blocks for row in block.rows]
    cells = [(*place, *pair) for place in rows for pair in zip(table.columns, place[1].cells, strict=True)]
    assert len(lines) == len(cells)
    for line, (block, row, column, cell) in zip(lines, cells, strict=True):
        assert tuple(line) == CSV_FIELDS
        assert (line["block"], line["row"], line["row_group"]) == (block.title, row.label, row.group)
        assert (line["column_group"], line["column"], line["unit"]) == (column.group, column.label, column.kind)
        for name in ("value", "std", "paper", "difference"):
            assert (float(line[name]) if line[name] else None) == getattr(cell, name)
        assert tuple(int(s) for s in line["seeds"].split()) == cell.seeds
        assert tuple(line["runs"].split()) == cell.runs
        assert (line["store"], line["command"], line["note"]) == (cell.store, cell.command, cell.note)


def test_markdown_columns_are_aligned(table: Table) -> None:
    lines = [line for line in render(table, "md").splitlines() if line.startswith("|")]
    assert {tuple(m.start() for m in re.finditer(r"\|", line)) for line in lines} == {
        tuple(m.start() for m in re.finditer(r"\|", lines[0]))
    }


def awkward() -> Table:
    label = r'50% of A&B_{c} | <i>#1</i> ~ $x^2$ \ "q" `m` *n*'
    row = Row(label=label, cells=(Cell(value=-1.5, note="a_b"), Cell(command="run x_y\n--all")))
    return Table(title=label, columns=(PERCENT, COUNT), blocks=(Block(title=label, rows=(row,)),), footnotes=(label,))


def test_markdown_escapes_what_would_be_markup() -> None:
    text = render(awkward(), "md")
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert all(len(re.findall(r"(?<!\\)\|", line)) == 4 for line in rows)
    assert r"\<i\>" in text


def latex_body(text: str) -> str:
    return "\n".join(line for line in text.splitlines() if not line.startswith("%"))


@pytest.mark.parametrize("name", ["golden", "awkward"])
def test_latex_is_balanced(table: Table, name: str) -> None:
    text = latex_body(render(table if name == "golden" else awkward(), "latex"))
    plain = re.sub(r"\\[\\{}&%$#_]", "", text)
    assert plain.count("{") == plain.count("}")
    assert plain.count("$") % 2 == 0
    assert not re.search(r"[%#~^|<>\"]", plain.replace(r"\textasciitilde", ""))
    opened = re.findall(r"\\begin\{(\w+)\}", text)
    assert sorted(opened) == sorted(re.findall(r"\\end\{(\w+)\}", text))
    assert [text.count(rf"\{rule}") for rule in ("toprule", "bottomrule")] == [1, 1]
    body = text.split(r"\toprule")[1].split(r"\bottomrule")[0]
    width = len(re.search(r"\\begin\{tabular\}\{(\w+)\}", text)[1])  # type: ignore[index]
    for line in body.replace(r"\&", "").splitlines():
        if line.endswith(r"\\"):
            spans = [int(n) - 1 for n in re.findall(r"\\multicolumn\{(\d+)\}", line)]
            assert line.count("&") + 1 + sum(spans) == width, line


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex here")
@pytest.mark.parametrize("name", ["golden", "awkward"])
def test_latex_compiles(table: Table, tmp_path: Path, name: str) -> None:
    body = render(table if name == "golden" else awkward(), "latex")
    text = rf"\documentclass{{article}}\usepackage{{booktabs}}\begin{{document}}{body}\end{{document}}"
    (tmp_path / "t.tex").write_text(text, encoding="utf-8")
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "t.tex"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-2000:]


def test_numbers_as_people_read_them() -> None:
    assert value_text(Cell(value=32.66, std=0.44), PERCENT) == "32.7 ± 0.4"
    assert value_text(Cell(value=32.0), PERCENT) == "32.0"
    assert value_text(Cell(value=10438), COUNT) == "10,438"
    assert value_text(Cell(), PERCENT) == "–"
    assert paper_text(Cell(value=32.7, paper=47.4, difference=-14.7), PERCENT) == "47.4 (-14.7)"
    assert paper_text(Cell(value=47.38, paper=47.4, difference=-0.02), PERCENT) == "47.4 (+0.0)"
    assert paper_text(Cell(paper=47.4), PERCENT) == "47.4"
    assert paper_text(Cell(), PERCENT) == ""
    assert paper_text(Cell(value=475, paper=475, difference=0), COUNT) == "475 ✓"
    assert paper_text(Cell(value=1684, paper=1659, difference=25), COUNT) == "1,659 (+25)"
    assert latex_text("47.4 (-14.7) ± 1 ✓ FashionNTM (CM-NTM)") == r"47.4 ($-$14.7) $\pm$ 1 $=$ FashionNTM (CM-NTM)"


def test_an_unknown_format_gets_the_nearest_name(table: Table) -> None:
    with pytest.raises(ManifestError, match=r"'jsn'|did you mean 'json'\? known: csv, json, latex, md"):
        render(table, "jsn")
