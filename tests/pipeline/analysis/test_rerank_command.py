"""Models that score candidates or read texts, training parts and re-ranking, as a user's spec asks for them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import Result

from tests.caption_project import CAPTIONS, caption_project
from tests.caption_project import call as call_in

SPEC = (
    """
name = "parts"
"""
    + CAPTIONS
    + """[composer.fit]
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
texts = 16
[models.gru]
hidden = 4
texts = 16
residual = "ewma"
training = {{ loss = "triplet", negatives = "static", hard_groups = 3 }}
"""
)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return caption_project(tmp_path_factory.mktemp("project"), "parts", SPEC)


def call(project: Path, command: str, *words: str) -> Result:
    return call_in(project, command, str(project / "parts.toml"), *words)


@pytest.mark.slow
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
