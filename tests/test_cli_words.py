"""Words of the commands: sizes of a benchmark, progress lines, a stopped server, runs without diagnostics."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner

from cli import main
from pipeline.bench import names, sizes_of
from tests.caption_project import CAPTIONS, call, caption_project

ROOT = Path(__file__).resolve().parent.parent
SPEC = 'name = "small"\n' + CAPTIONS + "dim = 8\n[composer.fit]\nepochs = 1\n[training]\nepochs = 1\nbatch_size = 32\n"
SPEC += "[models.last]\n[models.cm_ntm]\nstages = 2\nhidden = 4\n"
SERVER = """
from cli import Commands
from pipeline.views.serve.run import listen
import click

@click.group(cls=Commands)
def main(): ...

async def app(scope, receive, send): ...

@main.command()
def serve():
    listen(lambda token, hosts: app, "127.0.0.1", 0, lambda text: click.echo(text, err=True), click.echo)

main(["serve"])
"""


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
    assert json.loads(done.stdout)["figures"]["passed"] is True
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
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # ignored in background jobs
    )
    assert server.stdout is not None and server.stdout.readline().startswith("http://127.0.0.1:")
    assert server.stderr is not None and server.stderr.readline() == "stop with Ctrl-C\n"
    server.send_signal(signal.SIGINT)
    _, told = server.communicate(timeout=60)
    assert server.returncode == 130 and told.endswith("stopped\n") and "resume" not in told


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
