"""Text-only turns: from JSONL to ranks, with a zero embedding for the missing reference."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from cache import Store
from manifests.errors import ManifestError
from manifests.identity import NO_IMAGE_KEY, pair_key, stack_keys, text_key
from manifests.load import load_dataset, load_spec
from manifests.schema import NO_IMAGE
from pipeline.composition.fit import Embeddings, triplets
from pipeline.core.workspace import Workspace
from pipeline.jobs.experiment import Experiment
from pipeline.jobs.stage1 import extract_spec, fit_composer_spec
from pipeline.jobs.stage2 import evaluate, train
from tests.caption_project import CAPTIONS, FAST, caption_project

SPEC = f"""
name = "facts"
{CAPTIONS}{FAST}
[models.avg]
[models.cat]
[models.lstm]
hidden = 8
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small world, in which every session's second turn is text-only."""
    folder = caption_project(tmp_path_factory.mktemp("facts"), "facts", SPEC)
    file = folder / "data" / "world" / "sessions.jsonl"
    records = [json.loads(line) for line in file.read_text().splitlines()]
    for record in records:
        del record["turns"][1]["reference"]
        record["turn_targets"] = "final"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def test_from_sessions_to_ranks(project: Path) -> None:
    spec = load_spec(str(project / "facts.toml"))
    dataset, workspace = load_dataset(spec, project / "data"), Workspace(project / "out")
    assert dataset.text_only and NO_IMAGE not in {i for g in dataset.galleries for i in g.images}
    assert extract_spec(spec, dataset, workspace, "cpu").composed is None
    fit_composer_spec(spec, dataset, workspace)
    experiment = Experiment(spec, dataset, workspace, "cpu")
    list(train(experiment))
    summaries = evaluate(experiment)
    assert [s["metrics"]["all"]["overall"]["n"] for s in summaries] == [30, 30, 30]
    assert not any(s["skipped"] for s in summaries)

    backbone = workspace.backbone(spec, dataset)
    rows = triplets(backbone, dataset.split("train"))
    assert rows.left_out == 0 and set((rows.reference < 0).tolist()) == {True, False}
    assert not Embeddings.load(backbone).image[-1].any()
    store: Store = workspace.store(spec, dataset)
    text = dataset.sessions[0].turns[1].text
    (row,) = store.find("query", stack_keys([pair_key(NO_IMAGE_KEY, text_key(text))]))
    found = store.gather("query", np.array([row]))
    assert np.isfinite(found).all() and np.linalg.norm(found) == pytest.approx(1, abs=1e-3)


def test_a_zero_image_leaves_the_text_to_the_fusion() -> None:
    from pipeline.composition.composers.fusion import Fusion, FusionOptions

    text = torch.nn.functional.normalize(torch.randn(3, 8), dim=-1)
    assert torch.allclose(Fusion(FusionOptions(), 8, 8).query(torch.zeros(3, 8), text), text)


def test_a_joint_model_is_refused(project: Path) -> None:
    from pipeline.extraction.work import catalogue_of

    class Joint:
        name, tables, reads = "joint", ("query", "target"), "caption"

    spec = load_spec(str(project / "facts.toml"))
    with pytest.raises(ManifestError, match="'joint' is a joint model and world has turns without an image"):
        catalogue_of(load_dataset(spec, project / "data"), Joint(), None, 1, False)  # type: ignore[arg-type]
