"""`push` and `pull` with the real hub client against a hub on loopback."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from click.testing import CliRunner

from cli import main
from manifests.load import recorded_spec
from pipeline.jobs.run_rows import run_row
from pipeline.training.runs import RunFolder
from tests.pipeline.loopback_hub import TOKEN, Hub, loopback_hub

pytestmark = pytest.mark.slow  # the hub client in a process of its own
ROOT = Path(__file__).resolve().parents[2]
RUN = Path("world") / "cm_ntm" / "7b8b219502df"
SHIPPED = ROOT / "pipeline" / "demo" / "model" / "composer"
LOCAL = "/home/me/models/clip"
CALLS: dict[str, tuple[list[str], dict[str, str]]] = {  # arguments, and other variables
    "push": (["push", "7b8b", "--to", "user/mine", "--private", "--out", "with-path"], {}),
    "again": (["push", "7b8b", "--to", "user/mine", "--out", "with-path"], {}),
    "pull": (["pull", "user/mine", "--out", "pulled"], {}),
    "public": (["push", "7b8b", "--to", "user/open"], {}),
    "public, private": (["push", "7b8b", "--to", "user/open", "--private"], {}),
    "no token": (["push", "7b8b", "--to", "user/other"], {"HF_TOKEN": ""}),
    "other owner": (["push", "7b8b", "--to", "other/mine"], {}),
    "private without a token": (["pull", "user/mine", "--out", "none"], {"HF_TOKEN": ""}),
    "missing": (["pull", "user/nothing", "--out", "none"], {}),
    "no revision": (["pull", "user/mine", "--revision", "v9", "--out", "none"], {}),
    "offline": (["pull", "user/mine", "--out", "none"], {"HF_ENDPOINT": "http://127.0.0.1:9"}),
}


class Answer(NamedTuple):
    code: int
    stdout: str
    stderr: str


def call_all(file: str) -> None:
    """Run ``CALLS`` in this process and write their answers; "offline" closes the hub's address first."""
    found = {}
    for name, (words, variables) in CALLS.items():
        if name == "offline":  # the client reads the address when it is imported
            import huggingface_hub.constants

            huggingface_hub.constants.ENDPOINT = variables["HF_ENDPOINT"]
            from huggingface_hub import hf_api

            hf_api.api.endpoint = variables["HF_ENDPOINT"]
        done = CliRunner().invoke(main, words, env=variables)
        found[name] = (done.exit_code, done.stdout, done.stderr)
    Path(file).write_text(json.dumps(found))


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with loopback_hub() as found:
        yield found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The kept runs, and in ``with-path`` one whose spec names a local model folder."""
    folder = tmp_path_factory.mktemp("hub") / "kept"
    shutil.copytree(ROOT / "tests" / "kept" / "earlier", folder)
    run = folder / "with-path" / "runs" / RUN
    shutil.copytree(folder / "out" / "runs" / RUN, run)
    record = json.loads((run / "run.json").read_text())
    record["spec"]["extractor"]["model"] = LOCAL
    record["spec"]["composer"]["weights"] = str(SHIPPED)
    (run / "run.json").write_text(json.dumps(record))
    (run / "README.md").write_text(f"trained with {LOCAL}\n")
    reseal(run)
    return folder


def reseal(run: Path) -> None:
    from cache.seal import write_seal

    write_seal(run, "run", run.name, json.loads((run / "seal.json").read_text())["files"])


@pytest.fixture(scope="module")
def answers(hub: Hub, folder: Path) -> dict[str, Answer]:
    pytest.importorskip("huggingface_hub")
    own = {"HF_ENDPOINT": hub.address, "HF_HUB_OFFLINE": "0", "HF_TOKEN": TOKEN, "HF_HOME": str(folder / "hf")}
    own |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    code = "from tests.pipeline.test_hub import call_all; call_all('answers.json')"
    environment = {**os.environ, **own, "PYTHONPATH": str(ROOT), "NO_PROXY": "127.0.0.1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads((folder / "answers.json").read_text())
    return {name: Answer(*answer) for name, answer in found.items()}


def test_a_run_goes_to_the_hub_and_comes_back(answers: dict[str, Answer], hub: Hub, folder: Path) -> None:
    assert answers["push"].code == 0 and answers["push"].stdout.strip() == f"{hub.address}/user/mine"
    assert answers["again"].code == 0, answers["again"].stderr
    found = hub.repositories["user/mine"]
    assert found.private and not hub.repositories["user/open"].private
    assert found.commits == ["cm_ntm run 7b8b219502df"] * 2 and "README.md" in found.files
    assert found.files["model.safetensors"] == (folder / "out" / "runs" / RUN / "model.safetensors").read_bytes()
    assert answers["pull"].code == 0 and answers["pull"].stdout.strip() == f"pulled/runs/{RUN}"
    pulled = RunFolder(folder / "pulled" / "runs" / RUN)
    assert pulled.state == "finished" and pulled.sealed
    assert run_row(pulled)["test"] == run_row(RunFolder(folder / "out" / "runs" / RUN))["test"] != {}


def test_local_paths_stay_here_and_are_named(answers: dict[str, Answer], hub: Hub, folder: Path) -> None:
    assert f"spec.extractor.model: the local path {LOCAL} is published as clip" in answers["push"].stderr
    files = hub.repositories["user/mine"].files
    assert not any(b"/home/me" in data for data in files.values())
    spec = json.loads(files["run.json"])["spec"]
    assert spec["extractor"]["model"] == "clip"
    assert spec["composer"]["weights"] == "package:pipeline/demo/model/composer", "shipped with the project"
    assert recorded_spec(spec).composer.options["weights"] == str(SHIPPED)  # type: ignore[union-attr]
    assert answers["push"].stderr.count("is published as") == 1
    assert LOCAL in (folder / "with-path" / "runs" / RUN / "run.json").read_text()
    assert "published as" not in answers["public"].stderr


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("public, private", "user/open: the model exists and is public, so nothing was uploaded"),
        ("no token", "log in with `hf auth login`"),
        ("other owner", "don't have the rights to create a model under this namespace"),
        ("private without a token", "no model of this name, or a private one"),
        ("missing", "no model of this name"),
        ("no revision", "no such revision: check --revision"),
        ("offline", "check the network"),
    ],
)
def test_a_refusal_names_the_next_step(
    answers: dict[str, Answer], hub: Hub, folder: Path, name: str, expected: str
) -> None:
    code, stdout, stderr = answers[name]
    assert code == 3 and stdout == "" and expected in stderr and len(stderr.strip().splitlines()) == 1
    assert len(hub.repositories["user/open"].commits) == 1 and set(hub.repositories) == {"user/mine", "user/open"}
    assert not (folder / "none").exists()
