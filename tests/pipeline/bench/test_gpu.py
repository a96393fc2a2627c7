"""The GPU benchmark on a CPU, at sizes that take seconds: its parts, their limits, and what is kept of one that fails."""

from __future__ import annotations

import json
import shlex
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from cli import main
from manifests.errors import FashionNTMError, ManifestError
from pipeline.bench import gpu, measure

SMALL: dict[str, Any] = {"batch": 4, "turns": 2, "dim": 8, "hidden": 3, "repeats": 1, "stages": [2], "device": "cpu"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_without_a_gpu_it_says_so_in_one_line_and_exits_1(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["bench", "gpu", "--file", str(tmp_path / "gpu.json")])
    assert done.exit_code == 1 and not done.stdout
    assert done.stderr == "error: bench gpu measures a CUDA device, and torch sees none on this machine\n"
    with pytest.raises(FashionNTMError, match="CUDA"):
        gpu.run()


def test_a_part_that_takes_too_long_is_stopped_with_all_that_it_started(tmp_path: Path) -> None:
    mark = tmp_path / "pid"
    found = gpu._part(["sh", "-c", f"sleep 600 & echo $! > {shlex.quote(str(mark))}; wait"], 1)
    assert found["error"] == "stopped after its limit of 1 s" and found["seconds"] < 60
    child, end = int(mark.read_text()), time.monotonic() + 30  # a busy machine takes a moment to end a killed process
    while _runs(child) and time.monotonic() < end:
        time.sleep(0.05)
    assert not _runs(child)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.slow
def test_what_failed_is_named_and_ends_no_part_and_no_subject(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "test_two.py").write_text("def test_good(): pass\ndef test_bad(): assert False\n")
    file, saved, save = tmp_path / "gpu.json", [], gpu._line
    monkeypatch.setattr(gpu, "_line", lambda part, found: saved.append(part) or save(part, found))
    settings = SMALL | {"parts": "tests,steps", "tests": f"{tmp_path} -p no:cacheprovider", "workers": 0}
    sizes = [f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in settings.items()]
    _, text = measure("gpu", file, [*sizes, 'subjects=["graph","fast","fast K=2"]'])
    figures = json.loads(file.read_text())["figures"]
    assert figures["tests"]["tests"] == 2 and figures["tests"]["failed"] == ["test_bad"]
    assert "1 failed; test_bad; ended with code 1" in text
    first, second, third = figures["steps"]["steps"]
    assert "no graph: CUDA graphs need a CUDA device" in first["error"]
    assert second["ms"] > 0 and third["first_s"] > 0
    assert "2 of 3 subjects timed" in text and saved[:2] == ["tests", "steps"]


@pytest.mark.slow
def test_a_table_and_a_short_extraction_are_measured() -> None:
    figures = gpu.run(parts="table,extract", seeds=1, train=20, test=12, images=8, layers=1, **SMALL)
    assert figures["table"]["figures"]["predicted"]["training"] > 0 and "statistics" in gpu.render(figures)
    assert figures["extract"]["figures"]["images"] == 8 and "error" not in figures["extract"]
    assert "extraction, overlapped" in gpu.render(figures)


def test_the_tests_that_need_a_gpu_exist() -> None:
    for test in gpu.TESTS:
        file, _, name = test.partition("::")
        assert f"def {name or 'test_'}" in (gpu.ROOT / file).read_text("utf-8")
    assert sum(gpu.SECONDS.values()) <= 300


def test_an_unknown_part_gets_the_nearest() -> None:
    with pytest.raises(ManifestError, match="steps"):
        gpu.run(parts="step", device="cpu")
