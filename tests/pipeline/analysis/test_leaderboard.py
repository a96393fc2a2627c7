"""`table leaderboard`: sections ranked and tested, rows for a run and for a ranked list, files to publish."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from manifests.protocols import published
from manifests.table_spec import Leaderboard, load_table_spec
from pipeline.analysis.leaderboard import public_command
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
notes = ["A note."]
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
    return {section["label"]: section for section in json.loads(done.stdout)["sections"]}


def means(section: dict) -> dict[str, float | None]:
    return {row["method"]: row["values"]["Mean"].get("value") for row in section["rows"]}


def test_rows_are_sorted_and_empty_ones_name_their_command(project: Path) -> None:
    found = board(project)
    rows = means(found["All"])
    values = list(rows.values())
    assert len(rows) == 3 and None not in values and values == sorted(values, reverse=True)
    assert {s["a"] for s in found["All"]["statements"]} == {next(iter(rows))}
    assert 0 < found["All"]["chance"]["Mean"]["value"] < 100
    assert found["All"]["sessions_digest"] != found["Clean test"]["sessions_digest"]
    empty = found["Clean test"]["rows"][0]
    assert empty["values"]["Mean"] == {} and "--set dataset.protocol=clean-test" in empty["command"]
    assert str(project) in empty["command"]  # as typed here


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
    rows = means(found["All"])
    assert len(rows) == 5
    assert rows["theirs"] == rows["ST + avg(all turns)"]
    assert any(label.startswith("lstm (") and label.endswith(run.name[:8]) for label in rows)
    assert len(found["Clean test"]["rows"]) == 3
    given = project / "received" / run.name  # a folder outside of OUT
    given.parent.mkdir()
    shutil.move(run, given)
    received = means(board(project, "--run", str(given))["All"])
    shutil.move(given, run)
    assert {k: v for k, v in rows.items() if k.startswith("lstm (")}.items() <= received.items()
    refused = call(project, "table", str(project / "board.toml"), "--ranked", "nobody")
    assert refused.exit_code == 4 and "evaluated on none of the leaderboard's splits" in refused.output


def test_files_to_publish(project: Path) -> None:
    done = call(project, "table", str(project / "board.toml"), "--to", str(project / "published"))
    assert done.exit_code == 0, done.output
    text = (project / "published" / "leaderboard.md").read_text()
    assert text.startswith("# Small\n\nA note.\n\n## All\n\nSessions of the split: SHA-256 ")
    assert "## Clean test" in text and "Significance:" in text and "**Clean test**" not in text
    data = (project / "published" / "leaderboard.json").read_text()
    assert json.loads(data)["title"] == "Small" and json.loads(data)["sections"][1]["rule"].startswith("A test session")
    assert "is left out: absent" not in text.partition("## Clean test")[2]  # its runs are on another split, not stale
    for file in (text, data):  # no folder of this machine
        assert str(project) not in file and "--set dataset.protocol=clean-test --data DIR" in file
    assert call(project, "table", "1", "--to", "x").exit_code == 2


def test_a_public_command_names_no_local_folder() -> None:
    given = "fashion-ntm run /my/s.toml --set extractor.model=/models/x --set a.b=1e-4 --data '/my data' --out /o --model lstm"
    assert public_command(given) == (
        "fashion-ntm run s.toml --set extractor.model=DIR --set a.b=1e-4 --data DIR --model lstm"
    )
    assert public_command("") == ""


def test_the_shipped_one() -> None:
    shipped = load_table_spec("leaderboard")
    assert isinstance(shipped, Leaderboard)
    assert [s.protocol for s in shipped.sections if s.run == "mt_fashioniq-caption"] == [
        "clean-test",
        "clean-train",
        "clean-target",
    ]


def test_the_published_files_are_of_the_published_splits_and_agree() -> None:
    docs = Path(__file__).resolve().parents[3] / "docs"
    text, found = (docs / "leaderboard.md").read_text(), json.loads((docs / "leaderboard.json").read_text())
    shipped = load_table_spec("leaderboard")
    assert isinstance(shipped, Leaderboard)
    assert [s["label"] for s in found["sections"]] == [s.label for s in shipped.sections]
    for section, part in zip(found["sections"], text.split("\n## ")[1:], strict=True):
        assert part.startswith(section["label"])
        if section["protocol"]:
            split = published(section["run"].split("-")[0], section["protocol"])
            assert split is not None and section["sessions_digest"] == split["digest"]
        for row in section["rows"]:
            (line,) = [row_text for row_text in part.split("\n") if row_text.startswith(f"| {row['method']} ")]
            value = row["values"]["Mean"].get("value")
            assert (" – |" in line) if value is None else (f" {value:.1f}" in line)
        means = [row["values"]["Mean"].get("value", -1.0) for row in section["rows"]]
        assert means == sorted(means, reverse=True)
    assert "--out" not in text and "is left out: absent" not in text
