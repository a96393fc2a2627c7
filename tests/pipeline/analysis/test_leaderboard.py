"""`table leaderboard`: sections ranked and tested, rows for a run and for a ranked list, files to publish."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from manifests.table_spec import Leaderboard, load_table_spec
from pipeline.analysis.results_table import CHANCE
from tests.caption_project import CAPTIONS, FAST, call, caption_project

SPEC = f"""
name = "words"
{CAPTIONS}{FAST}
[models.last]
[models.avg]
[models.lstm]
hidden = 8
"""
BOARD = """
kind = "leaderboard"
title = "Small"
metrics = ["R@1", "mean"]
seeds = [0, 1]
[[sections]]
label = "All"
run = "{spec}"
[[sections]]
label = "Clean test"
run = "{spec}"
protocol = "clean-test"
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = caption_project(tmp_path_factory.mktemp("board"), "words", SPEC)
    (made / "board.toml").write_text(BOARD.format(spec=made / "words.toml"))
    done = call(made, "run", str(made / "words.toml"))
    assert done.exit_code == 0, done.output
    return made


def board(project: Path, *words: str) -> dict[str, dict]:
    done = call(project, "table", str(project / "board.toml"), "--json", *words)
    assert done.exit_code == 0, done.output
    sections = json.loads(done.stdout)["sections"]
    for section in sections:
        (block,) = section["table"]["blocks"]
        block["rows"] = [row for row in block["rows"] if row["label"] != CHANCE]
    return {section["label"]: section for section in sections}


def test_rows_are_sorted_and_empty_ones_name_their_command(project: Path) -> None:
    found = board(project)
    rows = found["All"]["table"]["blocks"][0]["rows"]
    means = [row["cells"][1]["value"] for row in rows]
    assert len(rows) == 3 and None not in means and means == sorted(means, reverse=True)
    assert {s["a"] for s in found["All"]["table"]["statements"]} == {rows[0]["label"]}
    assert found["All"]["sessions_digest"] != found["Clean test"]["sessions_digest"]
    empty = found["Clean test"]["table"]["blocks"][0]["rows"][0]["cells"][0]
    assert empty["value"] is None and "--set dataset.protocol=clean-test" in empty["command"]


def test_a_run_and_a_ranked_list_are_rows_of_their_splits(project: Path) -> None:
    spec = str(project / "words.toml")
    run = next(path for path in project.glob("out/runs/world/lstm/*"))
    lists = project / "lists"
    words = ("--model", "avg", "--format", "trec", "--to", str(lists))
    assert call(project, "results", spec, *words).exit_code == 0
    (file,) = [path for path in lists.rglob("*.trec") if "qrels" not in path.name]
    done = call(project, "evaluate", spec, "--ranked", str(file), "--name", "theirs")
    assert done.exit_code == 0, done.output
    found = board(project, "--run", run.name, "--ranked", "theirs")
    rows = {row["label"]: row["cells"][1]["value"] for row in found["All"]["table"]["blocks"][0]["rows"]}
    assert len(rows) == 5
    assert rows["theirs"] == rows["ST + avg(all turns)"]
    assert any(label.startswith("lstm (") and label.endswith(run.name[:8]) for label in rows)
    assert len(found["Clean test"]["table"]["blocks"][0]["rows"]) == 3
    refused = call(project, "table", str(project / "board.toml"), "--ranked", "nobody")
    assert refused.exit_code == 4 and "evaluated on none of the leaderboard's splits" in refused.output


def test_files_to_publish(project: Path) -> None:
    done = call(project, "table", str(project / "board.toml"), "--to", str(project / "published"))
    assert done.exit_code == 0, done.output
    text = (project / "published" / "leaderboard.md").read_text()
    assert text.startswith("# Small") and "## Clean test" in text and "Significance:" in text
    assert json.loads((project / "published" / "leaderboard.json").read_text())["title"] == "Small"
    assert call(project, "table", "1", "--to", "x").exit_code == 2


def test_the_shipped_one() -> None:
    shipped = load_table_spec("leaderboard")
    assert isinstance(shipped, Leaderboard)
    assert [s.protocol for s in shipped.sections if s.run == "mt_fashioniq-caption"] == [
        "clean-test",
        "clean-train",
        "clean-target",
    ]
