"""The study of train sessions and turns on a tiny demo: variants of the dataset, the choice on validation, the figure."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from manifests.ablation_spec import load_ablation_spec
from manifests.load import load_spec
from pipeline.analysis.ablation.run import open_ablation, variants_of
from pipeline.analysis.memory_pays import ORACLE, Measured, draw_memory_pays, memory_pays
from pipeline.evaluation.files import load_results
from pipeline.evaluation.metrics import metrics_of
from pipeline.jobs.experiment import Experiment
from pipeline.jobs.specs import check_components
from tests.caption_project import FAST, call, caption_project

SPEC = (
    """
name = "tiny"
[dataset]
name = "demo"
nested = true
captions = true
train_families = 1
test_families = 1
[extractor]
name = "caption"
model = "{model}"
[composer]
name = "gated"
hidden = 8
"""
    + FAST
    + """
[validation]
fraction = 0.2
"""
)
ABLATION = """
name = "small"
title = "Small study"
run = "{spec}"
seeds = [0, 1]
[[grid]]
models = ["last", "ewma"]
[[grid]]
models = ["lstm"]
options = {{ hidden = [2, 8] }}
[[grid]]
models = ["cm_ntm"]
options = {{ stages = 1, hidden = 4 }}
[datasets.turns3]
longest = 3
[datasets.turns5]
longest = 5
train_families = 2
[datasets.turns3-reminded]
longest = 3
reminded = true
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = caption_project(tmp_path_factory.mktemp("pays"), "tiny", SPEC)
    (made / "small.toml").write_text(ABLATION.format(spec=made / "tiny.toml"))
    return made


@pytest.mark.slow
def test_study(project: Path) -> None:
    ablation = str(project / "small.toml")
    done = call(project, "ablate", ablation, "--variant", "turns3", "--variant", "turns5")
    assert done.exit_code == 0 and "tiny-turns5" in done.stdout, done.output
    assert not [line for line in done.stdout.split("\n") if "ablate" in line and "--variant turns" not in line]
    place = open_ablation(ablation, "", (), project / "data", project / "out", "cpu")
    study = memory_pays(place)
    assert study.absent == ("turns3-reminded",) and "without a run: turns3-reminded" in study.text()
    assert {(m.turns, m.sessions) for m in study.measured} == {(3, 90), (5, 180)}
    found = {(m.turns, m.label): m for m in study.measured}
    assert len(found) == len(study.measured) == 2 * 4
    lstm = found[5, "LSTM"]
    assert lstm.tried == 2 and lstm.seeds == (0, 1) and lstm.options in ("hidden=2", "hidden=8")
    _agrees_with_the_ranks(place, lstm)
    assert {d.b for d in study.differences} == {"EWMA", "LSTM"} and len(study.differences) == 8
    assert all(d.seeds == 2 and not d.significant for d in study.differences)  # two seeds cannot be significant

    assert call(project, "ablate", ablation, "--variant", "turns3-reminded", "--only", "1").exit_code == 0
    study = memory_pays(place)
    assert [m.model for m in study.measured if m.label == ORACLE] == ["last"]
    paths = draw_memory_pays(study, project / "figures")
    assert all(p.stat().st_size > 2000 for p in paths)
    assert len(json.loads(paths[-1].read_text())["measured"]) == len(study.measured)


def _agrees_with_the_ranks(place: object, measured: Measured) -> None:
    part = next(p for p in variants_of(place) if p.spec.name.endswith(measured.variant))  # type: ignore[arg-type]
    experiment = Experiment(part.spec, part.dataset, part.workspace, "cpu")
    values = []
    for run in measured.runs:
        (file,) = experiment.workspace.runs.glob(f"*/{measured.model}/{run}/results.h5")
        result = load_results(file)
        ranks = [
            [r for r, c in zip(result.ranks, result.categories, strict=True) if c == k] for k in set(result.categories)
        ]
        values.append(sum(metrics_of(np.array(r))["mean"] for r in ranks) / len(ranks))
    assert measured.values["mean"][0] == pytest.approx(sum(values) / len(values))


def test_an_unknown_variant_and_the_shipped_study(project: Path) -> None:
    wrong = call(project, "ablate", str(project / "small.toml"), "--variant", "turns33")
    assert wrong.exit_code == 4 and "turns3" in wrong.output
    study = load_ablation_spec("memory-pays")
    variants = study.variants(load_spec("memory-pays"))
    assert len(variants) == 20
    for spec in variants.values():
        check_components(spec)
        assert spec.dataset.options["folder"] == f"catalogue-turns{spec.dataset.options['longest']}"
    label, spec = next(iter(variants.items()))
    assert (
        spec.name == f"memory-pays-{label}" and f"--set dataset.longest={spec.dataset.options['longest']}" in spec.asked
    )
