"""Cross-fitting through stage 1: fitted once, found again, and stale when the number of folds changes."""

from __future__ import annotations

from pathlib import Path

import pytest

from cache import Store
from manifests.errors import IncompleteError
from manifests.schema import Component, RunSpec
from pipeline.stage1 import extract_spec, fit_composer_spec
from pipeline.workspace import Workspace
from tests.pipeline.extraction.conftest import build_dataset, save_bert


def test_folds_are_part_of_the_composer_and_of_its_store(tmp_path: Path) -> None:
    dataset, workspace = build_dataset(None, images=30, sessions=16), Workspace(tmp_path / "out")
    bert = save_bert(tmp_path / "bert")

    def spec(**composer: object) -> RunSpec:
        return RunSpec(
            name="s",
            dataset=Component(name="jsonl"),
            extractor=Component(name="caption", model=str(bert), store_dtype="float32"),
            composer=Component(name="gated", hidden=8, fit={"epochs": 2, "batch_size": 8}, **composer),
        )

    assert extract_spec(spec(folds=2), dataset, workspace, "cpu", progress="silent").composed is None
    crossed = fit_composer_spec(spec(folds=2), dataset, workspace)
    assert crossed.composed.crossed > 0 and "cross-fitted, 2 folds" in crossed.text()
    assert sum(crossed.about["folds"]["sessions"]) == 16
    store = workspace.store(spec(folds=2), dataset)
    assert store.fields["composer"]["folds"]["count"] == 2
    with pytest.raises(IncompleteError, match="changed since its features were composed"):
        workspace.store(spec(), dataset)
    plain = fit_composer_spec(spec(), dataset, workspace)
    assert plain.composed.path != store.path and "folds" not in Store.open(plain.composed.path).fields["composer"]
    assert plain.about["weights"] == crossed.about["weights"]  # the head of all sessions is the same one
    again = fit_composer_spec(spec(folds=2), dataset, workspace)
    assert again.reused and again.composed.path == store.path and sum(again.composed.written.values()) == 0
    done = extract_spec(spec(folds=2), dataset, workspace, "cpu", progress="silent")
    assert done.composed is not None and done.composed.path == store.path
