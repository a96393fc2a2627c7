"""Defaults of --data and --out come from the environment or a file, and printed commands can be pasted."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from cli import main
from manifests.commandline import command_line, folder_options
from tests.test_docs_commands import command_of, options_of


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder, without defaults in the environment."""
    monkeypatch.chdir(tmp_path)
    for name in ("FASHION_NTM_DATA", "FASHION_NTM_OUT"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def call(*words: str) -> Result:
    return CliRunner().invoke(main, list(words))


def hint(done: Result) -> str:
    """The command of an error: figure 8 has no run here."""
    assert done.exit_code == 3 and not done.stdout, done.output
    (command,) = re.findall(r"run `([^`]+)`", done.stderr)
    return command


def test_built_in_defaults_are_not_mentioned() -> None:
    done = call("figure", "8")
    assert hint(done) == "fashion-ntm ablate figure8" and "note:" not in done.stderr


@pytest.mark.parametrize(
    ("file", "text", "source"),
    [
        ("fashion-ntm.toml", 'data = "d"\nout = "o"\n', "fashion-ntm.toml"),
        ("pyproject.toml", '[tool.fashion-ntm]\ndata = "d"\nout = "o"\n', r"[tool.fashion-ntm] in pyproject.toml"),
    ],
)
def test_a_file_gives_defaults_and_the_command_says_so(elsewhere: Path, file: str, text: str, source: str) -> None:
    (elsewhere / file).write_text(text)
    done = call("figure", "8")
    notes = [line for line in done.stderr.splitlines() if line.startswith("note:")]
    assert sorted(notes) == [f"note: --data d, from {source}", f"note: --out o, from {source}"]
    assert hint(done) == "fashion-ntm ablate figure8 --data d --out o"
    done = call("figure", "8", "--data", "data", "--out", "mine")  # what is typed wins
    assert "note:" not in done.stderr and hint(done) == "fashion-ntm ablate figure8 --data data --out mine"


def test_the_environment_goes_before_a_file(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (elsewhere / "fashion-ntm.toml").write_text('out = "o"\n')
    (elsewhere / "pyproject.toml").write_text('[tool.fashion-ntm]\nout = "p"\ndata = "p"\n')
    monkeypatch.setenv("FASHION_NTM_OUT", "from here")
    done = call("figure", "8")
    assert "note: --out from here, from FASHION_NTM_OUT\n" in done.stderr
    assert "note: --data p, from [tool.fashion-ntm] in pyproject.toml\n" in done.stderr
    assert hint(done) == "fashion-ntm ablate figure8 --data p --out 'from here'"
    assert folder_options(Path("data"), Path("out")) == ["--data", "data", "--out", "out"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('oot = "x"', "fashion-ntm.toml: oot: unknown default (did you mean 'out'?"),
        ("out = 3", "3 is not a folder"),
        ("out = ", "cannot be read"),
    ],
)
def test_a_wrong_file_is_an_error_with_its_place(elsewhere: Path, text: str, message: str) -> None:
    (elsewhere / "fashion-ntm.toml").write_text(text)
    done = call("figure", "8")
    assert done.exit_code == 4 and message in done.output and not done.stdout


def test_commands_of_a_table_and_a_figure_name_the_folders() -> None:
    where = ["--data", "my data", "--out", "o"]
    table = json.loads(call("table", "5", "--json", *where).stdout)
    commands = {cell["command"] for block in table["blocks"] for row in block["rows"] for cell in row["cells"]} - {""}
    figure = json.loads(call("figure", "8", "--json", *where).stdout)
    commands |= {point["command"] for point in figure["points"]}
    assert commands
    for command in commands:
        assert shlex.join(where) in command
        assert_can_be_pasted(command)


def assert_can_be_pasted(line: str) -> None:
    words = shlex.split(line)
    assert words[0] == "fashion-ntm"
    command, rest = command_of(words[1:])
    assert {word for word in rest if word.startswith("--")} <= options_of(command)


def test_words_are_quoted_for_a_shell() -> None:
    assert command_line("ls", "stores", "--out", "a b") == "fashion-ntm ls stores --out 'a b'"
