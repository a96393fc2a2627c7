"""The memorization study on the small world: composers of an ablation, values by leak, figures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.analysis.ablation.run import open_ablation, variants_of
from pipeline.analysis.memorisation import draw_memorisation, memorisation
from pipeline.evaluation.files import load_results
from pipeline.evaluation.metrics import metrics_of
from pipeline.jobs.experiment import Experiment
from pipeline.jobs.identities import make_run
from tests.caption_project import CAPTIONS, call, caption_project

SPEC = f"""
name = "words"
{CAPTIONS}
[training]
epochs = 1
batch_size = 20
[models.last]
"""
ABLATION = """
name = "small"
title = "Small study"
run = "{spec}"
seeds = [0, 1]
[[grid]]
models = ["last", "avg"]
[[grid]]
models = ["lstm"]
options = {{ hidden = 4 }}
[composers.short]
fit = {{ epochs = 1 }}
[composers.long]
hidden = 16
fit = {{ epochs = 12, weight_decay = 0.0 }}
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = caption_project(tmp_path_factory.mktemp("study"), "words", SPEC)
    (made / "small.toml").write_text(ABLATION.format(spec=made / "words.toml"))
    return made


@pytest.mark.slow
def test_study(project: Path) -> None:
    ablation = str(project / "small.toml")
    dry = call(project, "ablate", ablation, "--dry-run", "--json")
    assert dry.exit_code == 0 and len(json.loads(dry.stdout)) == 2, dry.output
    done = call(project, "ablate", ablation)
    assert done.exit_code == 0, done.output
    assert "words-short" in done.stdout and "words-long" in done.stdout

    place = open_ablation(ablation, "", (), project / "data", project / "out", "cpu")
    study = memorisation(place)
    assert [(p.composer, p.model, len(p.seeds)) for p in study.points] == [
        (c, m, n) for c in ("short", "long") for m, n in (("last", 1), ("avg", 1), ("lstm", 2))
    ]
    assert study.absent == () and study.paper == {"avg": 31.3, "EWMA": 44.4, "LSTM": 47.4, "FashionNTM": 48.1}
    last = {p.composer: p for p in study.points if p.model == "last"}
    assert last["long"].train > last["short"].train

    experiment = Experiment(variants_of(place)[1].spec, place.dataset, place.workspace, "cpu")
    result = load_results(experiment.result_files(make_run(experiment.spec, "last", 0)).results)
    seen = ~result.subsets["last pair unseen"]
    by_hand = [
        metrics_of(result.ranks[[s and c == name for s, c in zip(seen, result.categories, strict=True)]])["mean"]
        for name in ("dress", "shirt")
    ]
    assert last["long"].test["leaked"][0] == pytest.approx(sum(by_hand) / 2)
    assert "paper, all sessions: avg 31.3" in study.text()

    paths = draw_memorisation(study, project / "figures")
    assert [p.name for p in paths][-1] == "leakage.json" and all(p.stat().st_size > 1000 for p in paths)


def test_without_runs_the_command_is_named(project: Path) -> None:
    done = call(project, "figure", "leakage", "--spec", str(project / "words.toml"), out="other")
    assert done.exit_code == 3 and "run `ablate memorisation`" in done.output
