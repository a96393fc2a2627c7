"""The serve benchmark at sizes that take no time: the shape of its figures, and that its subjects agree."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from pipeline.bench import serve

ROOT = Path(__file__).resolve().parents[3]


def test_every_subject_has_its_percentiles() -> None:
    result = serve.run(galleries=(50, 300), dim=16, k=5, repeats=4, stages=2, device="cpu")
    assert [row["size"] for row in result["galleries"]] == [50, 300]
    for row in result["galleries"]:
        assert {"turn", "search", "matmul"} <= set(row["ms"])
        assert all(0 < found["50"] <= found["95"] <= found["99"] for found in row["ms"].values())
        assert row["same_top_k_as_faiss"] in (None, 1.0)
    assert "x matmul" in serve.render(result) and "300" in serve.render(result)


def test_nothing_but_the_pages_loads_the_web_packages() -> None:
    modules = "cli, pipeline.jobs.stage2, pipeline.views.retrieval.testbed, pipeline.views.study.results"
    program = f"import sys, {modules}; print([m for m in ('starlette', 'uvicorn', 'playwright', 'matplotlib') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
