"""Datasets whose train or test sessions are missing, or have no features: every command of the pipeline."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from tests.caption_project import call
from tests.hostile.makers import captions_folder, lines
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
    for command, *more in (("train", "--set", "models.lstm={}"), ("history",), ("tune", "--model", "ewma")):
        done = call(tmp_path, command, str(spec), *more)
        assert done.exit_code == 3 and "no train sessions" in done.output, (command, done.output, done.exception)
    done = call(tmp_path, "run", str(spec), "--set", "models.lstm={}")
    assert done.exit_code == 4 and "no train sessions to fit model lstm on" in done.output, done.output
    done = call(tmp_path, "fit-composer", str(spec), "--set", "composer.name=gated")
    assert done.exit_code == 3 and "has no train sessions to fit composer gated on" in done.output, done.output


def without_captions(folder: Path, split: str) -> None:
    """A dataset whose images of ``split`` have nothing to read."""
    captions_folder(folder, test=6)
    path = folder / "images.jsonl"
    images = [json.loads(line) for line in path.read_text().splitlines()]
    lines(path, [{"id": i["id"]} if f"-{split}-" in i["id"] else i for i in images])


def test_a_split_without_features(tmp_path: Path) -> None:
    """What needs no train session works without one; every other command names the cause and what mends it."""
    save_bert(tmp_path / "model")
    spec = tmp_path / "mine.toml"
    spec.write_text(SPEC.format(model=tmp_path / "model") + "[models.lstm]\n")
    helps = "fix what failed ("
    without_captions(tmp_path / "data/mine", "train")
    done = call(tmp_path, "extract", str(spec))
    assert done.exit_code == 0 and done.output.rstrip().endswith("--retry-failed"), done.output
    for command, code in (("train", 3), ("status", 3), ("evaluate", 0), ("table", 0), ("history", 3), ("run", 3)):
        done = call(tmp_path, command, str(spec))
        assert done.exit_code == code and isinstance(done.exception, SystemExit | None), (command, done.output)
        assert (helps in done.output) == (code == 3), (command, done.output)
    assert len(list((tmp_path / "out/runs/mine").glob("*/*/summary.json"))) == 4
    for folder in ("data", "out"):
        shutil.rmtree(tmp_path / folder)
    without_captions(tmp_path / "data/mine", "test")
    assert call(tmp_path, "extract", str(spec)).exit_code == 0
    for command in ("status", "run"):
        done = call(tmp_path, command, str(spec))
        assert done.exit_code == 3 and helps in done.output and "epoch" not in done.output, (command, done.output)
