"""A service's walk: the code and commands of docs/export.md give the engine's own answers (docs/python.md: test_python_page)."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from cli import main
from pipeline.api import Engine
from tests.pipeline.small_demo import small_demo

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "export.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_exported_model_and_index_answer_as_the_engine(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("faiss", "onnxruntime", "onnxscript", "pyarrow.parquet"):
        pytest.importorskip(name, reason=f"no {name}: pip install 'fashion-ntm[test]'")
    import onnxruntime
    import pyarrow.parquet

    demo = small_demo(tmp_path_factory.getbasetemp())
    experiment = demo.experiment()
    run = experiment.folder(next(r for r in experiment.current_runs() if r.model == "cm_ntm"))
    monkeypatch.chdir(tmp_path)
    for line in (line for line in PAGE.splitlines() if re.match("python cli.py (cache export|ls|export)", line)):
        words = shlex.split(line.replace("out/demo", str(demo.folder)).replace("RUN", run.id), comments=True)[2:]
        words += ["--turns", "2"] if words[0] == "export" else []  # a long session takes long to trace
        done = CliRunner().invoke(main, [str(demo.file) if word == "demo" else word for word in words])
        assert done.exit_code == 0, done.output
    table = pyarrow.parquet.read_table("features/target.parquet")
    assert set(table["id"].to_pylist()) <= set(demo.dataset.images)

    code = re.search(r"```python\n(.*?)```", PAGE, re.S)
    assert code
    known: dict[str, Any] = {}
    exec(compile(code[1], "docs/export.md", "exec"), known)
    engine = Engine.open(demo.spec, demo.folder, demo.folder, runs=[run.id], device="cpu")
    queries = engine.talks.queries
    gallery = engine.gallery()
    dialogue, state = engine.start(engine.ids()[0]), known["state"]
    compose = onnxruntime.InferenceSession("model/query.onnx")
    size = known["index"].ntotal
    for number, text in enumerate(("in red", "with long sleeves", "in navy")):
        rows = queries.image_row(dialogue.reference)[None], queries.text_row(text)[None]
        (f_qry,) = compose.run(None, dict(zip(("image", "text"), rows, strict=True)))
        np.testing.assert_allclose(f_qry[0], queries.query(dialogue.reference, text).numpy(), atol=1e-5)
        found, state = known["turn"](f_qry[0], number, state, k=size)
        expected = dialogue.say(text, k=5)
        scores = dict(found)
        for hit in expected:
            same = [i for names in known["ids"] if hit.id in names for i in names]
            assert any(abs(scores[i] - hit.score) < 1e-3 for i in same if i in scores)
    assert gallery in engine.galleries
