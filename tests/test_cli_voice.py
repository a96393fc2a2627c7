"""The conventions of the command line hold for every command, and old spellings are answered with the new ones."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from cli import main
from pipeline.commands import SECTIONS, sections_of
from pipeline.commands._moved import MOVES
from tests.test_docs_commands import command_of, options_of

PAGE = Path(__file__).resolve().parent.parent / "docs" / "command-line.md"
OLD = re.findall(r"^\| `(.+?)` \| `(.+?)` \|$", PAGE.read_text(encoding="utf-8").partition("## Old spellings")[2], re.M)


def all_commands(group: click.Group = main, name: str = "") -> Iterator[tuple[str, click.Command]]:
    for inner in group.commands.values():
        if isinstance(inner, click.Group):
            yield from all_commands(inner, f"{name}{inner.name} ")
        else:
            yield f"{name}{inner.name}", inner


LONGEST = 88  # characters of a first sentence, which the list of commands shows whole
COMMANDS = dict(all_commands())


def test_help_lists_every_command_in_its_section() -> None:
    text = CliRunner().invoke(main, ["--help"]).output
    sections = dict(re.findall(r"^([A-Z][a-z0-9 ]+):\n((?:  .+\n)+)", text, re.M))
    assert [s.lower() for s in sections if s != "Options"] == list(SECTIONS)
    for section, commands in sections_of("pipeline.commands").items():
        listed = re.findall(r"^  ([a-z][a-z-]*) ", sections[section.capitalize()], re.M)
        assert listed == [command.name for command in commands] != []
    assert {c.name for commands in sections_of("pipeline.commands").values() for c in commands} == set(main.commands)


def test_a_command_without_a_section_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "somecommands"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "new.py").write_text("command = None\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ValueError, match=r"somecommands\.new: SECTION is None, write one of data, stage 1"):
        sections_of("somecommands")
    for name in ("somecommands", "somecommands.new"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_options_mean_the_same_everywhere(name: str) -> None:
    params = {option: param for param in COMMANDS[name].params for option in param.opts}
    assert not {"--workspace", "--runs", "--db", "--plan"} & set(params)
    for option in ("--json", "--dry-run"):
        assert option not in params or params[option].is_flag, f"{name}: {option} takes a value"
    out = params.get("--out")
    if out is not None and name != "demo":
        assert out.name == "out" and out.help.startswith("Folder for stores and runs."), (
            f"{name}: --out is not the workspace"
        )
    assert "--data" not in params or params["--data"].help.startswith("Folder of the datasets"), name
    for option, param in params.items():
        shown = (
            param.make_metavar(click.Context(COMMANDS[name])) if option.startswith("-") and not param.is_flag else ""
        )
        assert not set(shown.split()) & {"PATH", "DIRECTORY", "INTEGER", "FLOAT"}, f"{name}: {option} {shown}"
    run = params.get("--run")
    assert run is None or "spec" not in (run.help or "").lower().split()[:2], f"{name}: --run is a run, not a spec"


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_help_begins_with_a_verb_and_has_an_example(name: str) -> None:
    command = COMMANDS[name]
    verb = (command.help or "").split()[0]
    assert re.fullmatch(r"[A-Z][a-z]+", verb) and not verb.endswith("s"), f"{name}: {verb}"
    assert not command.get_short_help_str(LONGEST).endswith("..."), (
        f"{name}: the first sentence is longer than {LONGEST}"
    )
    assert f"fashion-ntm {name.replace('study ask', 'study')}" in (command.epilog or ""), command.epilog


@pytest.mark.parametrize(("old", "new"), OLD, ids=[old for old, _ in OLD])
def test_an_old_spelling_is_answered_with_the_new_one(old: str, new: str) -> None:
    done = CliRunner().invoke(main, old.split())
    assert done.exit_code == 2 and not done.stdout
    assert done.stderr == f"error: an old spelling: the command is `fashion-ntm {new}` now\n"
    command, rest = command_of(new.split())
    assert {word for word in rest if word.startswith("--")} <= options_of(command)
    again = CliRunner().invoke(main, [*new.split(), "--help"])
    assert again.exit_code == 0, again.output


def test_the_page_has_every_old_spelling() -> None:
    for move in MOVES:
        rows = [old for old, _ in OLD if old.startswith(f"{move.old} ")]
        assert rows, move.old
        assert all(any(option in row for row in rows) for option in move.options), move.old


@pytest.mark.parametrize(
    "words",
    [
        ["report", "demo", "--out", "out", "--file", "report.html"],
        ["cache", "export", "demo", "--out", "out", "--to", "arrays"],
        ["figure", "diagnostics", "--run", "1f3a"],
        ["bench", "train", "--json"],
        ["bench", "--json", "train"],
        ["ablate", "table5", "--dry-run"],
    ],
)
def test_present_spellings_are_not_taken_for_old_ones(words: list[str]) -> None:
    assert [move.old for move in MOVES if move.translate(words)] == []
