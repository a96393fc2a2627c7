"""Live queries are made by the very models that made the store, or refused."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from manifests.errors import IncompleteError
from manifests.identity import pair_key, stack_keys, text_key
from manifests.schema import Component, RunSpec
from pipeline.composition.checkpoint import load_composer, save_composer
from pipeline.core.binding import StaleError
from pipeline.core.workspace import Workspace
from pipeline.extraction.extractors import load_extractor
from pipeline.extraction.fitting.job import fit_extractor_spec
from pipeline.jobs.experiment import Experiment
from pipeline.jobs.stage1 import extract_spec
from pipeline.jobs.stage2 import train
from pipeline.views.retrieval.queries import Queries, store_extractor
from pipeline.views.serve.run import open_engine
from tests.pipeline.extraction.conftest import save_clip
from tests.pipeline.small_demo import Project

NEW = "a dress with a red collar"


def spec_with(demo: Project, model: Path, composer: Component | None = None, **options: Any) -> RunSpec:
    """The small demo's spec with another CLIP and one model without training."""
    extractor = Component(**{"name": "clip", "model": str(model), "store_dtype": "float32", **options})
    changes = {"extractor": extractor, "composer": composer, "models": {"last": {}}}
    return demo.spec.model_copy(update=changes)


def made(spec: RunSpec, demo: Project, folder: Path, **options: Any) -> Workspace:
    workspace = Workspace(folder)
    extract_spec(spec, demo.dataset, workspace, "cpu", progress="silent", **options)
    list(train(Experiment(spec, demo.dataset, workspace, "cpu")))
    return workspace


def test_serve_encodes_with_the_fitted_weights(demo: Project, tmp_path: Path) -> None:
    base = save_clip(tmp_path / "clip")
    fit = {"epochs": 1, "batch_size": 30, "learning_rate": 1e-2}
    spec = spec_with(demo, base, fit=fit)
    fit_extractor_spec(spec, demo.dataset, Workspace(tmp_path / "out"), "cpu")
    workspace = made(spec, demo, tmp_path / "out")
    engine = open_engine(Experiment(spec, demo.dataset, workspace, "cpu"))
    known = demo.dataset.split("test")[0].turns[0].text
    stored = Queries(spec, demo.dataset, workspace).text_row(known)
    live = engine.queries.extractor.encode_texts([known])[0]
    assert float(stored @ live) == pytest.approx(1, abs=1e-6)
    unfitted = load_extractor(spec_with(demo, base), "cpu").encode_texts([NEW])[0]
    assert float(unfitted @ engine.queries.text_row(NEW)) < 0.999

    save_clip(base, seed=1)  # the fit's base is another model now
    with pytest.raises(IncompleteError, match=r"not fitted yet: run `fashion-ntm fit-extractor .*--cached-only"):
        open_engine(Experiment(spec, demo.dataset, workspace, "cpu"))


@pytest.mark.slow
def test_serve_computes_in_the_precision_of_the_store(demo: Project, tmp_path: Path) -> None:
    spec = spec_with(demo, save_clip(tmp_path / "clip"))
    workspace = Workspace(tmp_path / "out")
    extract_spec(spec, demo.dataset, workspace, "cpu", precision="bf16", progress="silent")
    found = store_extractor(Experiment(spec, demo.dataset, workspace, "cpu"))
    known = demo.dataset.split("test")[0].turns[0].text
    assert found.compute is torch.bfloat16
    np.testing.assert_allclose(
        found.encode_texts([known])[0], Queries(spec, demo.dataset, workspace).text_row(known), atol=0.02
    )


def test_a_model_that_changed_since_is_refused_with_what_changed(demo: Project, tmp_path: Path) -> None:
    model = save_clip(tmp_path / "clip")
    spec = spec_with(demo, model)
    workspace = made(spec, demo, tmp_path / "out")
    assert open_engine(Experiment(spec, demo.dataset, workspace, "cpu")).queries.live
    save_clip(model, seed=1)
    with pytest.raises(
        IncompleteError, match=r"\(weights: \"\w+\.* -> \"\w+\.*\): run `fashion-ntm extract .*`; `--cached-only`"
    ):
        open_engine(Experiment(spec, demo.dataset, workspace, "cpu"))
    assert not open_engine(Experiment(spec, demo.dataset, workspace, "cpu"), cached_only=True).queries.live
    shutil.rmtree(model)  # not there at all: the page says why
    assert "clip" in open_engine(Experiment(spec, demo.dataset, workspace, "cpu")).why_not_live


def test_live_queries_use_the_composer_of_the_store(demo: Project, tmp_path: Path) -> None:
    shipped = Path(str(demo.spec.composer.options["weights"]))
    folder = tmp_path / "composer"
    shutil.copytree(shipped, folder)
    composer = Component(name="gated", weights=str(folder))
    spec = spec_with(demo, Path(str(demo.spec.extractor.options["model"])), composer)
    workspace = made(spec, demo, tmp_path / "out")
    queries, store = Queries(spec, demo.dataset, workspace), workspace.store(spec, demo.dataset)
    turn = demo.dataset.split("test")[0].turns[0]
    key = pair_key(store.catalogue()[turn.reference], text_key(turn.text))
    wanted = store.gather("query", store.find("query", stack_keys([key])))[0]
    np.testing.assert_allclose(queries.query(turn.reference, turn.text).numpy(), wanted, atol=1e-6)

    other, _ = load_composer(folder)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.1)
    save_composer(folder, other, {})
    with pytest.raises(
        StaleError, match=r"model files changed .*composer\.weights:composer\.safetensors.*run `fashion-ntm extract "
    ):
        Queries(spec, demo.dataset, Workspace(workspace.out))
