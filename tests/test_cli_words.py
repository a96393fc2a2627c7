"""Words of the commands: sizes of a benchmark, progress lines, a stopped server, runs without diagnostics."""

from __future__ import annotations

import json
import os
import signal
import sys
import tomllib
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from cli import Commands, main
from pipeline.bench import kill, names, sizes_of
from pipeline.views.serve.run import listen
from tests.caption_project import CAPTIONS, call, caption_project
from tests.processes import forked

ROOT = Path(__file__).resolve().parent.parent
SPEC = 'name = "small"\n' + CAPTIONS + "dim = 8\n[composer.fit]\nepochs = 1\n[training]\nepochs = 1\nbatch_size = 32\n"
SPEC += "[models.last]\n[models.cm_ntm]\nstages = 2\nhidden = 4\n"


@click.group(cls=Commands)
def server() -> None: ...


@server.command()
def serve() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None: ...

    listen(lambda token, hosts: app, "127.0.0.1", 0, lambda text: click.echo(text, err=True), click.echo)


@pytest.mark.parametrize("name", names())
def test_bench_name_help_lists_the_sizes(name: str) -> None:
    done = CliRunner().invoke(main, ["bench", name, "--help"])
    assert done.exit_code == 0 and f"bench {name}: " in done.output
    for size in sizes_of(name):
        assert f"  {size}=" in done.output


def test_bench_help_is_that_of_the_command_and_an_unknown_name_gets_the_nearest() -> None:
    assert "Usage:" in CliRunner().invoke(main, ["bench", "--help"]).output
    wrong = CliRunner().invoke(main, ["bench", "strtup", "--help"])
    assert wrong.exit_code == 4 and "did you mean 'startup'" in wrong.output
    listed = json.loads(CliRunner().invoke(main, ["bench", "list", "--json"]).stdout)
    assert sorted(listed) == sorted(names())


def test_each_progress_line_off_a_terminal_ends_in_a_newline(tmp_path: Path) -> None:
    words = ["bench", "kill", "--set", "kills=2", "--set", f"folder={tmp_path}", "--json"]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    figures = json.loads(done.stdout)["figures"]
    assert figures["passed"] is True and figures["kills"] == 2
    text = kill.render(figures)
    assert "2 writers killed" in text and text.endswith("passed")
    assert done.stderr.endswith("2 of 2 kills\n") and "1 of 2 kills\n" in done.stderr and "\r" not in done.stderr


def test_an_interrupted_benchmark_does_not_promise_to_resume(monkeypatch: pytest.MonkeyPatch) -> None:
    def run() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pipeline.bench.startup.run", run)
    done = CliRunner().invoke(main, ["bench", "startup"])
    assert (
        done.exit_code == 130 and "the same command starts it again" in done.stderr and "to resume" not in done.stderr
    )


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT")
def test_a_server_that_is_interrupted_says_stopped() -> None:
    with forked(server, ["serve"]) as running:
        assert running.stdout.readline().startswith("http://127.0.0.1:")
        assert running.stderr.readline() == "stop with Ctrl-C\n"
        os.kill(running.pid, signal.SIGINT)
        code, _, told = running.finish()
    assert code == 130 and told.endswith("stopped\n") and "resume" not in told


def test_train_with_diagnostics_on_a_finished_run_names_force(tmp_path: Path) -> None:
    project = caption_project(tmp_path, "small", SPEC)
    spec = str(project / "small.toml")
    assert call(project, "run", spec).exit_code == 0
    again = call(project, "train", spec, "--diagnostics")
    assert again.exit_code == 0, again.output
    for line in again.stdout.splitlines():
        assert "kept" in line and ("--force" in line) == line.startswith("cm_ntm")
    assert call(project, "train", spec, "--diagnostics", "--force").exit_code == 0
    assert "--force" not in call(project, "train", spec, "--diagnostics").stdout


def test_doctor_knows_the_demo_and_jsonl_folders_and_the_extras(tmp_path: Path) -> None:
    from manifests.datasets.demo.files import STAMP
    from pipeline.core.doctor import DEMO_STAMP, EXTRAS

    assert DEMO_STAMP == STAMP
    (tmp_path / "mine").mkdir()
    (tmp_path / "demo").mkdir()
    for name in ("mine/sessions.jsonl", "mine/images.jsonl", f"demo/{STAMP}"):
        (tmp_path / name).write_text("{}\n")
    found = {f["check"]: f for f in json.loads(CliRunner().invoke(main, doctor(tmp_path)).stdout)["findings"]}
    assert found["data"]["state"] == "ok"
    assert "demo (rendered garments of the demo), mine (JSONL)" in found["data"]["found"]
    assert "mine (JSONL)" in str(CliRunner().invoke(main, doctor(tmp_path / "mine")).stdout)
    assert "holds no dataset" in CliRunner().invoke(main, doctor(tmp_path / "none")).stdout
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = set(project["optional-dependencies"]) - {"test", "dev"}
    assert set(EXTRAS) == extras and all(found[f"[{extra}]"]["found"] for extra in extras)


def doctor(data: Path) -> list[str]:
    return ["doctor", "--json", "--data", str(data)]
