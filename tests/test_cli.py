"""The commands as a user types them, on a small JSONL dataset and a tiny sentence encoder."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from cli import main
from tests.caption_project import CAPTIONS, call, caption_project

ROOT = Path(__file__).resolve().parent.parent
SPEC = (
    """
name = "small"
title = "A small world"
seeds = [0, 1]
"""
    + CAPTIONS
    + """dim = 8
[composer.fit]
epochs = 2
[training]
epochs = 2
batch_size = 16
[validation]
fraction = 0.2
[models.avg]
[models.cat]
[models.last]
[models.ewma]
[models.lstm]
hidden = 4
[models.cm_ntm]
stages = 2
hidden = 4
"""
)
Run = Callable[..., Result]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data/world, a model and small.toml."""
    return caption_project(tmp_path_factory.mktemp("project"), "small", SPEC)


@pytest.fixture
def cli(project: Path) -> Run:
    """Runs a command on small.toml with the project's folders; ``cli("train", "--model", "lstm")``."""

    def run(command: str, *words: str, out: str = "out", spec: bool = True) -> Result:
        target = [str(project / "small.toml")] if spec else []
        return call(project, command, *target, *words, out=out)

    return run


def test_help_names_every_command_and_the_exit_codes() -> None:
    result = CliRunner().invoke(main, ["--help"])
    assert result.exit_code == 0
    for word in (*main.commands, "2 usage", "3 stale", "4 invalid", "130 interrupted"):
        assert word in " ".join(result.output.split())


@pytest.mark.parametrize("command", sorted(main.commands))
def test_every_command_has_help_with_an_example(command: str) -> None:
    result = CliRunner().invoke(main, [command, "--help"])
    assert result.exit_code == 0 and "Example: fashion-ntm" in result.output


def test_a_mistyped_command_gets_the_nearest_name_and_exit_code_2() -> None:
    result = CliRunner().invoke(main, ["trian"])
    assert result.exit_code == 2 and "train" in result.output


def test_the_whole_path_from_validate_to_table(cli: Run, project: Path) -> None:
    """Each step says what is next; a step too early says what to run first; a second call computes nothing."""
    assert cli("train").exit_code == 3
    early = cli("status", "--json")
    assert early.exit_code == 3 and json.loads(early.stdout)["complete"] is False
    assert "extract" in json.loads(early.stdout)["stage1"]

    valid = cli("validate", "--json")
    assert valid.exit_code == 0 and json.loads(valid.stdout)["sessions"]["train"] == {"2": 90}

    planned = json.loads(cli("plan", "--json").stdout)
    assert planned["todo"] > 0 and not (project / "out" / "stores").exists()

    extracted = cli("extract", "--json")
    assert extracted.exit_code == 0, extracted.output
    report = json.loads(extracted.stdout)
    assert report["extraction"]["extracted"] == planned["todo"]
    assert report["composed"] is None and report["next"].startswith("fashion-ntm fit-composer")
    assert cli("train").exit_code == 3

    fitted = cli("fit-composer", "--json")
    assert fitted.exit_code == 0, fitted.output
    assert json.loads(fitted.stdout)["composer"]["validation"]["triplets"] > 0
    assert json.loads(cli("fit-composer", "--json").stdout)["reused"] is True

    again = json.loads(cli("extract", "--json").stdout)
    assert again["extraction"]["extracted"] == 0 and sum(again["composed"]["written"].values()) == 0
    assert json.loads(cli("plan", "--json").stdout)["todo"] == 0

    trained = cli("train")
    assert trained.exit_code == 0, trained.output
    lines = trained.stdout.splitlines()
    assert len(lines) == 4 + 2 * 2  # four without training, two trained ones by two seeds
    assert all("kept" in line for line in cli("train").stdout.splitlines())

    waiting = json.loads(cli("status", "--json").stdout)
    assert set(waiting["runs"]["lstm"].values()) == {"finished"}
    evaluated = cli("evaluate", "--json")
    assert evaluated.exit_code == 0, evaluated.output
    summaries = json.loads(evaluated.stdout)
    assert {s["model"] for s in summaries} == {"avg", "cat", "last", "ewma", "lstm", "cm_ntm"}
    assert all(0 <= s["metrics"]["all"]["overall"]["R@8"] <= 100 for s in summaries)
    done = cli("status", "--json")
    assert done.exit_code == 0 and json.loads(done.stdout)["complete"] is True

    table = cli("table", "demo", "--spec", str(project / "small.toml"), "--format", "json", spec=False)
    assert table.exit_code == 0, table.output
    cells = {row["label"]: row["cells"] for row in json.loads(table.stdout)["blocks"][0]["rows"]}
    lstm = next(cells[label] for label in cells if "LSTM" in label)
    by_hand = [s["metrics"]["all"]["overall"]["R@5"] for s in summaries if s["model"] == "lstm"]
    assert any(abs(cell["value"] - sum(by_hand) / 2) < 1e-9 for cell in lstm)
    ntm = next(cells[label] for label in cells if "v-NTM" in label)
    assert ntm[0]["value"] is None and "--model v_ntm" in ntm[0]["command"]


def test_status_knows_an_extraction_that_was_stopped(cli: Run, project: Path) -> None:
    assert "nothing is extracted" in cli("status", out="stopped").output
    assert cli("extract", out="stopped").exit_code == 0
    for note in (project / "stopped" / "extracted").glob("*.json"):  # written when an extraction has come to its end
        note.unlink()
    found = cli("status", "--json", out="stopped")
    assert (
        found.exit_code == 3 and "begun, not finished: run `fashion-ntm extract" in json.loads(found.stdout)["stage1"]
    )
    assert all(rows > 0 for rows in json.loads(found.stdout)["rows"].values())


def test_a_changed_composer_is_stale_until_it_is_fitted_again(cli: Run) -> None:
    assert cli("run", "--model", "last", out="stale").exit_code == 0
    changed = ["--set", "composer.dim=6"]
    stale = cli("train", "--model", "last", *changed, out="stale")
    assert stale.exit_code == 3 and "changed since its features were composed" in stale.output
    assert "--set composer.dim=6" in stale.output  # the command to run can be pasted
    assert cli("run", "--model", "last", *changed, out="stale").exit_code == 0
    assert cli("train", "--model", "last", *changed, out="stale").exit_code == 0


def test_two_commands_with_the_same_seed_train_the_same_weights(cli: Run, project: Path) -> None:
    for out in ("one", "two"):
        assert cli("run", "--model", "lstm", "--seeds", "3", out=out).exit_code == 0
    first, second = (sorted((project / out / "runs").rglob("model.safetensors")) for out in ("one", "two"))
    assert [p.read_bytes() for p in first] == [p.read_bytes() for p in second] != []


@pytest.mark.parametrize(
    ("words", "code", "expected"),
    [
        (["train", "--model", "lsmt"], 4, "did you mean 'lstm'"),
        (["train", "--seeds", "4..1"], 2, "'4..1' is not a list of numbers"),
        (["ablate", "table5", "--only", "2,4.."], 2, "'2,4..' is not a list of numbers"),
        (["validate", "--set", "extractor.name=captoin"], 4, "did you mean 'caption'"),
        (["validate", "--set", "composer.name=gatd"], 4, "did you mean 'gated'"),
        (["validate", "--set", "models.lstm.hiden=3"], 4, "did you mean 'hidden'"),
        (["validate", "--set", "models.rnn.x=1"], 4, "unknown memory model 'rnn'"),
        (["validate", "--set", "dataset.folder=nowhere"], 4, "nowhere"),
        (
            ["validate", "--set", "training.early_stopping=3", "--set", "validation.fraction=0"],
            4,
            "validation.fraction",
        ),
        (["extract", "--device", "tpu"], 1, "unknown device 'tpu'"),
        (["extract", "--set", "extractor.model=no/such/folder/here"], 1, "no/such/folder/here"),
    ],
)
def test_a_wrong_word_names_the_value_and_the_way_out(cli: Run, words: list[str], code: int, expected: str) -> None:
    result = cli(*words, out="wrong")
    assert (result.exit_code, expected in result.output) == (code, True), result.output


def test_table_1_without_any_data_is_empty_and_says_how_to_fill_it(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["table", "1", "--data", str(tmp_path)])
    assert result.exit_code == 0 and "6,897" in result.output and "--data" in result.output


@pytest.mark.slow
def test_table_1_equals_the_papers_counts_on_the_real_annotations(shared_data: Path) -> None:
    """As JSON; the other formats: test_render.py."""
    result = CliRunner().invoke(main, ["table", "1", "--data", str(shared_data), "--format", "json"])
    assert result.exit_code == 0, result.output
    assert "toptee/train/01339" in result.stdout  # the dropped session is reported
    cells = [cell for row in json.loads(result.stdout)["blocks"][0]["rows"] for cell in row["cells"]]
    assert [cell["value"] for cell in cells] == [6897, 1733, 475, 10438, 1752, 483, 165, 6274]
    assert [cell["value"] for cell in cells] == [cell["paper"] for cell in cells]


@pytest.mark.parametrize("kind", ["specs", "tables", "datasets", "extractors", "composers", "models", "stores", "runs"])
def test_ls_lists_every_kind_as_text_and_as_json(cli: Run, kind: str, project: Path) -> None:
    plain = CliRunner().invoke(main, ["ls", kind, "--out", str(project / "out")])
    detail = CliRunner().invoke(main, ["ls", kind, "--long", "--json", "--out", str(project / "out")])
    assert plain.exit_code == detail.exit_code == 0, plain.output + detail.output
    rows = json.loads(detail.stdout)[kind]
    assert all(row["name"] in plain.stdout for row in rows)
    if kind not in ("stores", "runs"):
        assert rows


def test_doctor_reports_what_it_found() -> None:
    result = CliRunner().invoke(main, ["doctor", "--json"])
    report = json.loads(result.stdout)
    assert result.exit_code == 0 and report["healthy"]
    assert {"python", "torch", "h5py", "disk", "out", "data"} <= {f["check"] for f in report["findings"]}


def test_doctor_fails_on_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    import os

    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    (tmp_path / "locked").mkdir(mode=0o500)
    result = CliRunner().invoke(main, ["doctor", "--out", str(tmp_path / "locked" / "out")])
    assert result.exit_code == 1 and "not writable" in result.output


def test_the_command_runs_as_a_program_and_keeps_logs_off_stdout() -> None:
    done = subprocess.run(
        [sys.executable, "cli.py", "ls", "specs", "--json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout)["specs"]


def test_bench_writes_every_figure_that_it_prints(tmp_path: Path) -> None:
    file = tmp_path / "startup.json"
    result = CliRunner().invoke(main, ["bench", "startup", "--file", str(file), "--set", "repeats=1"])
    assert result.exit_code == 0, result.output
    figures = json.loads(file.read_text())["figures"]
    assert all(f"{value['cpu_s']:.3f}" in result.stdout for value in figures.values())


def test_an_unknown_benchmark_or_size_gets_the_nearest_name() -> None:
    assert "did you mean 'startup'" in CliRunner().invoke(main, ["bench", "strtup"]).output
    assert "did you mean 'repeats'" in CliRunner().invoke(main, ["bench", "startup", "--set", "repeat=1"]).output


@pytest.mark.parametrize(
    ("written", "numbers"), [("3", (3,)), ("0..4", (0, 1, 2, 3, 4)), ("0,2,5", (0, 2, 5)), ("7,0..2,1", (7, 0, 1, 2))]
)
def test_numbers_are_written_singly_and_in_runs(written: str, numbers: tuple[int, ...]) -> None:
    import click

    from pipeline.commands._options import parse_numbers

    command = click.Command("x")
    assert parse_numbers(click.Context(command), click.Option(["--only"]), written) == numbers
