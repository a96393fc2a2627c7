"""Today's code on a store and runs that an earlier version wrote (tests/kept): same ids, same digests, same numbers."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from cli import main
from manifests.identity import file_digest

KEPT = Path(__file__).parent / "kept" / "earlier"
STORES = ("caption-e9256b375a3c", "caption+gated-7dfe2cdd561d")
RUNS = {"last": "cf071e372549", "cm_ntm": "7b8b219502df"}
LINES = ("| last turn                | 100.0 | 100.0 | 54.0 |", "| CM-NTM                   |  40.0 |  40.0 | 17.7 |")


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the earlier workspace, which is the current directory."""
    folder = tmp_path / "kept"
    shutil.copytree(KEPT, folder)
    monkeypatch.chdir(folder)
    return folder


def call(*words: str) -> Result:
    return CliRunner().invoke(main, words)


def test_everything_is_found_and_whole(kept: Path) -> None:
    status = call("status", "kept.toml")
    assert status.exit_code == 0 and status.output.rstrip().endswith("complete")
    assert STORES[1] in status.output and "query 54, target 30" in status.output
    runs = call("ls", "runs").output
    assert all(f"world/{name}/{run}" in runs for name, run in RUNS.items()) and runs.count("current") == 2
    verified = call("cache", "verify", "kept.toml")
    assert verified.exit_code == 0 and verified.stdout.count("every row is whole") == 2


def test_a_table_shows_the_numbers_of_then(kept: Path) -> None:
    shown = call("table", "table.toml")
    assert shown.exit_code == 0 and all(line in shown.output for line in LINES)


def test_running_it_again_computes_and_changes_nothing(kept: Path) -> None:
    files = [p for p in (kept / "out").rglob("*") if p.suffix in (".h5", ".safetensors")]
    before = {p: file_digest(p) for p in files}
    again = call("run", "kept.toml", "--device", "cpu")
    assert again.exit_code == 0, again.output
    assert "0 extracted, 30 reused" in again.output and "0 composed, 54 reused" in again.output
    assert {p: file_digest(p) for p in files} == before
    assert sorted(p for p in (kept / "out").rglob("*") if p.suffix in (".h5", ".safetensors")) == sorted(files)


def test_the_same_model_and_settings_have_the_ids_of_then(kept: Path) -> None:
    """Everything but the dataset and the model is deleted and made anew: names are digests of what must not change."""
    shutil.rmtree(kept / "out")
    made = call("run", "kept.toml", "--device", "cpu", "--model", "last")
    assert made.exit_code == 0, made.output
    assert (kept / "out" / "stores" / "world" / STORES[0] / "manifest.json").is_file()
