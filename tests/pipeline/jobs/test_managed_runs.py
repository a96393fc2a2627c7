"""Runs as one manages them: `ls runs` with its filters, `runs show`, `runs compare`, `runs rm`."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from cli import main

ROOT = Path(__file__).resolve().parents[3]
KEPT = ROOT / "tests" / "kept" / "earlier"
CM_NTM, LAST = "7b8b219502df", "cf071e372549"


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of a small finished workspace, which is the current directory."""
    folder = tmp_path / "kept"
    shutil.copytree(KEPT, folder)
    monkeypatch.chdir(folder)
    return folder


def call(*words: str, code: int = 0) -> Result:
    done = CliRunner().invoke(main, words)
    assert done.exit_code == code, done.output
    return done


def listed(*words: str) -> list[dict]:
    return json.loads(call("ls", "runs", "--json", *words).stdout)["runs"]


def test_ls_runs_shows_scores_and_json_has_everything(kept: Path) -> None:
    text = call("ls", "runs").stdout.splitlines()
    assert text[0].split() == ["run", "state", "options", "spec", "date", "seed", "epochs", "validation", "test", "MB"]
    by_id = {row["id"]: row for row in listed()}
    row = by_id[CM_NTM]
    assert row["model"] == "cm_ntm" and row["current"] == "current" and row["options"]["stages"] >= 1
    assert f"{row['test']['all']['mean']:.1f}" in next(line for line in text if CM_NTM in line)
    assert row["bytes"] > 0 and row["date"].endswith("+00:00") and row["spec"]


def test_ls_runs_filters_and_sorts(kept: Path) -> None:
    assert [row["id"] for row in listed("--where", "model=last")] == [LAST]
    assert listed("--where", "model=last", "--where", "id=x") == []
    means = [row["test"]["all"]["mean"] for row in listed("--sort", "-test")]
    assert means == sorted(means, reverse=True) and len(means) == 2
    assert [row["id"] for row in listed("--sort", "seed")][-1] == LAST, "a run without a seed comes last"
    assert "did you mean 'model'" in call("ls", "runs", "--where", "modle=x", code=4).output
    assert "belong to `ls runs`" in call("ls", "models", "--sort", "name", code=2).output


def test_show_and_compare(kept: Path) -> None:
    shown = call("runs", "show", CM_NTM[:5]).stdout
    assert CM_NTM in shown and "option stages" in shown and "test, all" in shown and "current" in shown
    found = json.loads(call("runs", "show", CM_NTM, "--json").stdout)
    assert found["identity"]["model"]["name"] == "cm_ntm" and "model.safetensors" in found["files"]
    both = json.loads(call("runs", "compare", CM_NTM, LAST, "--json").stdout)
    assert both["runs"] == [CM_NTM, LAST] and both["settings"]["model"] == ["cm_ntm", "last"]
    assert both["scores"]["test.all.mean"][0] != both["scores"]["test.all.mean"][1]
    assert "test.all.R@5" in call("runs", "compare", CM_NTM, LAST).stdout
    folders = ["--data", "data", "--out", "out"]
    compared = json.loads(call("runs", "compare", CM_NTM, LAST, *folders, "--json").stdout)
    assert compared == both and "current" not in both["settings"], "both are current"
    assert json.loads(call("runs", "show", CM_NTM, *folders, "--json").stdout) == found
    assert "two runs or more" in call("runs", "compare", CM_NTM, code=2).output
    assert "no run 'ffff'" in call("runs", "show", "ffff", code=4).output


def test_rm_removes_what_its_dry_run_says(kept: Path) -> None:
    folder = kept / "out" / "runs" / "world" / "cm_ntm" / CM_NTM
    planned = json.loads(call("runs", "rm", CM_NTM, "--dry-run", "--json").stdout)
    assert folder.is_dir() and planned["bytes"] > 0
    done = json.loads(call("runs", "rm", CM_NTM, "--json").stdout)
    assert done["removed"] == planned["removed"] and not folder.exists()
    assert [row["id"] for row in listed()] == [LAST] and not list((kept / "out").rglob(".removed*"))
    assert "1 runs removed" in call("runs", "rm", "--where", "model=last").stdout and listed() == []
    assert "name the runs" in call("runs", "rm", code=2).output


def test_a_killed_removal_is_told_and_collected(kept: Path) -> None:
    aside = kept / "out" / f".removed-{LAST}-0123abcd"
    (kept / "out" / "runs" / "world" / "last" / LAST).rename(aside)
    size = sum(file.stat().st_size for file in aside.rglob("*") if file.is_file())
    told = call("status", "kept.toml", code=3).stdout
    assert f"1 folders of interrupted removals, {size:,} bytes: `cache gc`" in told
    assert json.loads(call("status", "kept.toml", "--json", code=3).stdout)["leftovers"] == {
        str(aside.relative_to(kept)): size
    }
    store = next((kept / "out" / "stores" / "world").glob("caption-*"))
    assert "would be removed" in call("cache", "gc", str(store), "--dry-run").stdout and aside.is_dir()
    assert f"({size:,} bytes) of an interrupted removal removed" in call("cache", "gc", str(store)).stdout
    assert not aside.exists() and "interrupted removal" not in call("cache", "gc", str(store)).stdout


def test_a_run_that_is_being_trained_is_not_removed(kept: Path) -> None:
    folder = kept / "out" / "runs" / "world" / "cm_ntm" / CM_NTM
    hold = f"import sys; from pathlib import Path; from cache.lease import Lease; lease = Lease(Path({str(folder)!r}))"
    program = hold + "; print('held', flush=True); sys.stdin.read()"
    child = subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert child.stdout is not None and child.stdout.readline() == "held\n"
        assert "is being trained" in call("runs", "rm", LAST, CM_NTM, code=3).output
        assert folder.is_dir() and len(listed()) == 2
        assert not list((kept / "out" / "runs" / "world" / "last" / LAST).glob(".writer.lease-*"))  # is not held either
    finally:
        child.communicate("", timeout=30)
