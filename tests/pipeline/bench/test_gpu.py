"""The GPU benchmark on a CPU, at sizes that take seconds: its parts, their limits, and what is kept of one that fails."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from manifests.errors import FashionNTMError, ManifestError
from pipeline.bench import gpu, run_bench
from tests.conftest import REPOSITORY

SMALL: dict[str, Any] = {"batch": 4, "turns": 2, "dim": 8, "hidden": 3, "repeats": 1, "stages": [2], "device": "cpu"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_without_a_gpu_it_says_so_in_one_line_and_exits_1(tmp_path: Path) -> None:
    command = [sys.executable, "cli.py", "bench", "gpu", "--file", str(tmp_path / "gpu.json")]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, env=os.environ | {"CI": ""})
    assert done.returncode == 1 and not done.stdout
    assert done.stderr == "error: bench gpu measures a CUDA device, and torch sees none on this machine\n"
    with pytest.raises(FashionNTMError, match="CUDA"):
        gpu.run()


def test_a_subject_that_fails_does_not_end_the_rest_and_the_file_has_both(tmp_path: Path) -> None:
    sizes = [f"{key}={json.dumps(value)}" for key, value in SMALL.items()]
    text = run_bench("gpu", tmp_path / "gpu.json", [*sizes, "parts=steps", 'subjects=["graph","fast","fast K=2"]'])
    (first, second, third) = json.loads((tmp_path / "gpu.json").read_text())["figures"]["steps"]["steps"]
    assert "no graph: CUDA graphs need a CUDA device" in first["error"]
    assert second["ms"] > 0 and third["first_s"] > 0
    assert "2 of 3 subjects timed" in text and "failed" in text


def test_a_part_that_takes_too_long_is_stopped_with_all_that_it_started(tmp_path: Path) -> None:
    mark = tmp_path / "pid"
    script = (
        "import pathlib, subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"pathlib.Path({str(mark)!r}).write_text(str(child.pid))\n"
        "child.wait()\n"
    )
    found = gpu._part([sys.executable, "-c", script], 15)
    assert found["error"] == "stopped after its limit of 15 s" and found["seconds"] < 60
    child, end = int(mark.read_text()), time.monotonic() + 30  # a busy machine takes a moment to end a killed process
    while _runs(child) and time.monotonic() < end:
        time.sleep(0.05)
    assert not _runs(child)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_tests_are_counted_those_that_failed_are_named_and_the_next_part_runs(tmp_path: Path) -> None:
    (tmp_path / "test_two.py").write_text("def test_good(): pass\ndef test_bad(): assert False\n")
    saved: list[list[str]] = []
    figures = gpu.run(
        parts="tests,steps",
        subjects=["fast"],
        tests=f"{tmp_path} -p no:cacheprovider",
        workers=0,
        save=lambda found: saved.append(list(found)),
        **SMALL,
    )
    assert figures["tests"]["tests"] == 2 and figures["tests"]["failed"] == ["test_bad"]
    assert "1 failed; test_bad; ended with code 1" in gpu.render(figures)
    assert figures["steps"]["steps"][0]["ms"] > 0
    assert saved == [["tests"], ["tests", "steps"]]


@pytest.mark.slow
def test_a_short_extraction_is_measured() -> None:
    figures = gpu.run(parts="extract", images=8, layers=1, **SMALL)
    assert figures["extract"]["figures"]["images"] == 8 and "error" not in figures["extract"]
    assert "extraction, overlapped" in gpu.render(figures)


def test_an_unknown_part_gets_the_nearest() -> None:
    with pytest.raises(ManifestError, match="steps"):
        gpu.run(parts="step", device="cpu")
