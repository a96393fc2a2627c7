"""A researcher's walk: own grid, table, frame and figure, with the commands and code of docs/tables.md."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from cli import main
from tests.pipeline.small_demo import small_demo

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "tables.md").read_text(encoding="utf-8")
SECTION = PAGE.partition("## A table for every spec")[2].partition("\n## ")[0]


@pytest.mark.slow
def test_the_commands_and_the_code_of_the_page(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("pandas", "matplotlib"):
        pytest.importorskip(name, reason=f"no {name}: pip install 'fashion-ntm[test]'")
    demo = small_demo(tmp_path_factory.getbasetemp())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    grid = re.search(r"```toml\n(.*?)```", SECTION, re.S)
    assert grid
    (tmp_path / "widths.toml").write_text(grid[1].replace('"demo"', json.dumps(str(demo.file))))
    lines = [line for line in SECTION.splitlines() if line.startswith("python cli.py")]
    printed = []
    for line in lines:
        words = shlex.split(line.replace("out/demo", str(demo.folder)))[2:]
        done = CliRunner().invoke(main, [str(demo.file) if word == "demo" else word for word in words])
        assert done.exit_code == 0, done.output
        printed.append(done.stdout)
    plan, ran, latex, own = printed
    assert "8" in plan and "cm_ntm stages=1 width=8" in ran and "chance (random order)" in ran
    assert r"\toprule" in latex and "4. cm" in latex and "To fill" not in ran
    assert "ST + EWMA" in own and own.count("chance (random order)") == 1

    def program(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        done = CliRunner().invoke(main, command[1:])
        return subprocess.CompletedProcess(command, done.exit_code, done.stdout, done.stderr)

    monkeypatch.setattr(subprocess, "run", program)
    code = re.search(r"```python\n(.*?)```", SECTION, re.S)
    assert code
    known: dict[str, Any] = {}
    exec(compile(code[1].replace("out/demo", str(demo.folder)), "docs/tables.md", "exec"), known)
    assert len(known["overall"]) >= 5 and (tmp_path / "widths.png").stat().st_size > 1000
