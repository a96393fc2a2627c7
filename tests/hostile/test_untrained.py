"""Methods without training on a dataset that has test sessions alone: every command of the pipeline."""

from __future__ import annotations

import json
from pathlib import Path

from tests.caption_project import call
from tests.hostile.makers import captions_folder
from tests.pipeline.extraction.conftest import save_bert

MODELS = ("last", "avg", "cat", "ewma")
SPEC = """
name = "mine"
[dataset]
name = "jsonl"
folder = "mine"
[extractor]
name = "caption"
model = "{model}"
[composer]
name = "fusion"
[models.last]
[models.avg]
[models.cat]
[models.ewma]
alpha = 0.5
"""


def test_test_sessions_alone(tmp_path: Path) -> None:
    captions_folder(tmp_path / "data/mine", train=0, test=6)
    save_bert(tmp_path / "model")
    spec = tmp_path / "mine.toml"
    spec.write_text(SPEC.format(model=tmp_path / "model"))
    for command in ("validate", "plan", "extract", "train", "evaluate", "status"):
        done = call(tmp_path, command, str(spec))
        assert done.exit_code == 0, (command, done.output, done.exception)
    for model in MODELS:
        (found,) = (tmp_path / "out/runs/mine" / model).glob("*/summary.json")
        assert json.loads(found.read_text())
    done = call(tmp_path, "table", str(spec), "--format", "json")
    assert done.exit_code == 0, (done.output, done.exception)
    assert all(title in done.output for title in ("ST, last turn only", "ST + EWMA"))
    lstm = ("--set", "models.lstm={}")
    done = call(tmp_path, "train", str(spec), *lstm)
    assert done.exit_code in (3, 4) and "train session" in done.output and "run `extract`" not in done.output
