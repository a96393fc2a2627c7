"""Models that score candidates or read texts, training parts and re-ranking, as a user's spec asks for them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from cli import main
from manifests.datasets.jsonl import export
from tests.pipeline.extraction.conftest import save_bert
from tests.worlds import world

SPEC = """
name = "parts"
[dataset]
name = "jsonl"
folder = "world"
[extractor]
name = "caption"
model = "{model}"
[composer]
name = "gated"
hidden = 8
[composer.fit]
epochs = 2
[training]
epochs = 2
batch_size = 16
loss = {{ name = "multi_similarity", beta = 20.0 }}
ema = 0.5
[validation]
fraction = 0.2
[models.ewma]
[models.cfir]
width = 8
[models.dialog_manager]
width = 8
gallery = 20
[models.turn_weights]
texts = {width}
[models.gru]
hidden = 4
texts = {width}
residual = "ewma"
training = {{ loss = "triplet", negatives = "static", hard_groups = 3 }}
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    export(world(), folder / "data" / "world")
    save_bert(folder / "model")
    width = json.loads((folder / "model" / "config.json").read_text(encoding="utf-8"))["hidden_size"]
    (folder / "parts.toml").write_text(SPEC.format(model=folder / "model", width=width), encoding="utf-8")
    return folder


def call(project: Path, command: str, *words: str) -> Result:
    where = ["--data", str(project / "data"), "--out", str(project / "out")]
    return CliRunner().invoke(main, [command, str(project / "parts.toml"), *words, *where])


def test_every_baseline_goes_from_a_spec_to_metrics_and_through_reranking(project: Path) -> None:
    for command in ("extract", "fit-composer", "train", "evaluate"):
        done = call(project, command)
        assert done.exit_code == 0, done.output
    summaries = {s["model"]: s["metrics"] for s in json.loads(call(project, "evaluate", "--json").stdout)}
    assert set(summaries) == {"ewma", "cfir", "dialog_manager", "turn_weights", "gru"}

    reranked = call(project, "rerank", "--json", "--top", "10")
    assert reranked.exit_code == 0, reranked.output
    for report in json.loads(reranked.stdout):
        before = report["test"]["before"]
        assert before["all"] == pytest.approx(summaries[report["model"]]["all"]["overall"])
        assert report["validation"]["after"] >= report["validation"]["before"]  # (0, 0) is on the grid
        assert 0 <= report["cutoff"]["target kept"] <= 100
    fixed = json.loads(call(project, "rerank", "--json", "--have", "0", "--avoid", "0", "--model", "cfir").stdout)
    assert fixed[0]["test"]["after"] == fixed[0]["test"]["before"]
    shown = call(project, "rerank", "--model", "ewma").stdout
    assert "ewma seed 0: top 50" in shown and "cut-off: target kept" in shown


def test_what_cannot_be_asked_for_is_said_before_anything_runs(project: Path) -> None:
    wrong = call(project, "validate", "--set", "training.loss=multi_similarty")
    assert wrong.exit_code == 4 and "multi_similarity" in wrong.output
    wrong = call(project, "validate", "--set", "training.loss.bta=3")
    assert wrong.exit_code == 4 and "bta" in wrong.output
