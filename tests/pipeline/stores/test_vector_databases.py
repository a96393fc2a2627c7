"""The recipes for vector databases in docs/export.md, each where its package is installed."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from cli import main

ROOT = Path(__file__).resolve().parents[3]
SECTION = (ROOT / "docs" / "export.md").read_text(encoding="utf-8").partition("## Vector databases")[2]
FIRST, *RECIPES = re.findall(r"```python\n(.*?)```", SECTION, re.S)
BY_PACKAGE = {re.search(r"^(?:from|import) (\w+)", code, re.M)[1]: code for code in RECIPES}  # type: ignore[index]


def test_the_page_has_the_recipes() -> None:
    assert set(BY_PACKAGE) == {"qdrant_client", "chromadb", "lancedb", "faiss"}


@pytest.mark.parametrize("package", BY_PACKAGE)
def test_a_recipe_finds_the_nearest_rows(package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pyarrow", reason="no pyarrow: pip install 'fashion-ntm[parquet]'")
    pytest.importorskip(package, reason=f"no {package}: docs/export.md names its package")
    shutil.copytree(ROOT / "tests" / "kept" / "earlier", tmp_path / "kept")
    monkeypatch.chdir(tmp_path / "kept")
    store = next(Path("out/stores/world").glob("caption+gated-*"))
    words = ["cache", "export", str(store), "--format", "parquet", "--to", "features"]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    known: dict[str, Any] = {}
    exec(compile(FIRST + BY_PACKAGE[package], "docs/export.md", "exec"), known)
    rows, ids = np.asarray(known["rows"], np.float32), known["ids"]
    scores = rows @ rows[0]
    found = known["found"]
    assert [score for _, score in found] == pytest.approx(sorted(scores, reverse=True)[:10], abs=1e-5)
    assert len(found) == 10 and all(abs(scores[ids.index(i)] - score) < 1e-5 for i, score in found)
