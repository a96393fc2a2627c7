"""What a terminal gets: another code page, escapes in names and notes, arguments that are no UTF-8."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from cli import main
from tests.hostile.makers import SPEC, captions_folder
from tests.processes import forked

ROOT = Path(__file__).resolve().parent.parent.parent


def run(*words: str | bytes, encoding: str = "utf-8") -> tuple[int | None, str, str]:
    """A command in a process of its own, as a user's console of that code page runs it: exit code, stdout, stderr."""
    with forked(main, [os.fsdecode(word) for word in words], encoding=encoding) as program:
        return program.finish()


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset whose category is Cyrillic, and whose notes would clear the screen of a terminal."""
    tmp_path = tmp_path_factory.mktemp("odd")
    captions_folder(tmp_path / "data/mine", category="платье")
    about = {"name": "mine", "notes": ["\x1b[2J\x1b]0;owned\x07 and \u202egnp.exe"]}
    (tmp_path / "data/mine/dataset.json").write_text(json.dumps(about))
    (tmp_path / "mine.toml").write_text(SPEC)
    return tmp_path


def validate(folder: Path, encoding: str) -> tuple[str, str]:
    code, out, errors = run("validate", str(folder / "mine.toml"), "--data", str(folder / "data"), encoding=encoding)
    assert code == 0, errors
    return out, errors


def test_a_console_of_another_code_page_gets_escapes_and_no_traceback(odd: Path) -> None:
    assert "gallery \\u043f\\u043b\\u0430\\u0442\\u044c\\u0435/test" in validate(odd, "cp1252")[0]


def test_terminal_escapes_are_shown_escaped(odd: Path) -> None:
    out, errors = validate(odd, "utf-8")
    assert "gallery платье/test" in out
    assert "\x1b" not in out + errors and "\x07" not in out + errors and "\u202e" not in out + errors
    assert "note: \\x1b[2J\\x1b]0;owned\\x07 and \\u202egnp.exe" in errors


def test_escapes_in_an_id_are_escaped_in_the_error(tmp_path: Path) -> None:
    captions_folder(tmp_path / "mine")
    with open(tmp_path / "mine/images.jsonl", "a") as file:
        file.write('{"id": "\\u001b[31m", "fiel\\u001b[31m": "a"}\n')
    (tmp_path / "mine.toml").write_text(SPEC)
    done = CliRunner().invoke(main, ["validate", str(tmp_path / "mine.toml"), "--data", str(tmp_path)])
    assert done.exit_code == 4
    assert "\x1b" not in done.stderr and r"key fiel\x1b[31m: unknown key" in done.stderr


@pytest.mark.skipif(os.name == "nt", reason="paths are Unicode there")
def test_a_workspace_path_that_is_no_utf8_is_refused_at_once(odd: Path) -> None:
    for command in ("validate", "train", "evaluate"):
        code, _, errors = run(command, str(odd / "mine.toml"), "--data", str(odd / "data"), "--out", b"gr\xfcn")
        assert code == 2 and r"Error: 'gr\udcfcn' is not UTF-8: rename the file or folder that it names" in errors


def test_a_warning_of_the_project_is_one_note(odd: Path) -> None:
    program = (
        "import cli, cache.files, warnings, os, errno, stat\n"
        "def fsync(d):\n    if stat.S_ISDIR(os.fstat(d).st_mode): raise OSError(errno.EINVAL, 'Invalid argument')\n"
        "os.fsync = fsync\n"
        "cli.main(['--version'], standalone_mode=False)\n"
        "cache.files.sync_directory('.')\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, cwd=odd)
    assert done.stderr.startswith(
        "note: .: this file system cannot fsync a folder (Invalid argument); the job continues"
    )
    assert done.stderr.count("\n") == 1
