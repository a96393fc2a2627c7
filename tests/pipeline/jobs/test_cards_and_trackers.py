"""The model card of a run, its way through a hub, and metrics at a tracker."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from cli import main
from manifests.errors import FashionNTMError, IncompleteError, ManifestError
from manifests.identity import file_digest
from pipeline.export.hub import HubError, install_run, pull_run, push_run
from pipeline.jobs.cards import write_card
from pipeline.jobs.run_rows import run_row
from pipeline.jobs.trackers import TRACKERS, Trackers, scalars
from pipeline.training.runs import RunFolder

KEPT = Path(__file__).resolve().parents[2] / "kept" / "earlier"
CM_NTM = Path("world") / "cm_ntm" / "7b8b219502df"
EPOCH = {"epoch": 3, "loss": 0.5, "seconds": 1, "validation": {"R@5": 20.0, "mean": 21.0}, "reset": True}


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "kept"
    shutil.copytree(KEPT, folder)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def run(kept: Path) -> RunFolder:
    return RunFolder(kept / "out" / "runs" / CM_NTM)


def test_a_card_has_settings_results_and_data_and_changes_no_seal(run: RunFolder) -> None:
    sealed = {file: file_digest(file) for file in run.path.iterdir() if file.is_file()}
    assert write_card(run, None)
    text = (run.path / "README.md").read_text()
    row = run_row(run)
    assert f"run {run.id}" in text and f"{row['test']['all']['mean']:.1f}" in text and "| stages" in text
    assert run.state == "finished" and {file: file_digest(file) for file in sealed} == sealed
    (run.path / "README.md").write_text(text.replace("## Use", "My notes.\n\n## Use"))
    assert not write_card(run, None), "an edited card is kept"
    assert "My notes." in (run.path / "README.md").read_text()


def test_evaluate_writes_the_card_with_the_license(kept: Path, run: RunFolder) -> None:
    for words in (["extract", "kept.toml", "--device", "cpu"], ["evaluate", "kept.toml"]):
        done = CliRunner().invoke(main, words)
        assert done.exit_code == 0, done.output
    text = (run.path / "README.md").read_text()
    assert "license: " in text and "license: not recorded" not in text and run.state == "finished"


def test_a_pulled_run_is_checked_and_installed(run: RunFolder, tmp_path: Path) -> None:
    write_card(run, None)
    found = install_run(run.path, tmp_path / "runs")
    assert found.path == tmp_path / "runs" / CM_NTM and found.state == "finished"
    assert (found.path / "README.md").is_file() and run_row(found)["test"] == run_row(run)["test"]
    assert install_run(run.path, tmp_path / "runs") == found
    weights = run.path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(FashionNTMError, match="damaged"):
        install_run(run.path, tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("place", ["../../../x", "a/b", ""])
def test_a_run_cannot_name_a_place_outside(run: RunFolder, tmp_path: Path, place: str) -> None:
    record = json.loads(run.run_file.read_text())
    run.run_file.write_text(json.dumps(record | {"dataset": place}))
    with pytest.raises(FashionNTMError, match="no run of this project"):
        install_run(run.path, tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_without_a_network_the_next_step_is_said(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(HubError, match="check the network"):
        pull_run("user/name", tmp_path / "runs")
    with pytest.raises(HubError, match="push user/name: the hub was not reached"):
        push_run(run, "user/name")
    for name in ("name", "user/name/more", "../name", "user/.."):
        with pytest.raises(ManifestError, match="write user/name"):
            push_run(run, name)
    done = CliRunner().invoke(main, ["pull", "user/name", "--out", str(tmp_path / "out")])
    assert done.exit_code == 3 and "Traceback" not in done.output


def test_the_numbers_of_an_epoch_by_name() -> None:
    assert scalars(EPOCH) == {"loss": 0.5, "seconds": 1.0, "validation/R@5": 20.0, "validation/mean": 21.0}


def test_a_tracker_that_is_not_installed_names_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for name in TRACKERS:
        with pytest.raises(IncompleteError, match=rf"fashion-ntm\[{name}\]"):
            Trackers((name,), tmp_path, print)
