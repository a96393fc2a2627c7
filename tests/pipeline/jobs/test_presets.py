"""Presets: a run of a preset is a run of its model with the preset's options, named beside the paper's form."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from manifests.load import load_dataset, load_spec
from manifests.presets import presets
from manifests.schema import Training
from manifests.write import spec_toml
from pipeline.core.workspace import Workspace
from pipeline.jobs.experiment import Experiment
from pipeline.jobs.identities import make_run
from pipeline.training.models import model_options, models
from pipeline.views.retrieval.trained import trained_runs
from tests.caption_project import CAPTIONS, FAST, call, caption_project

SPEC = f"""
name = "words"
{CAPTIONS}{FAST}
[models.cm_ntm]
stages = 2
hidden = 4
"""
TABLE = """
kind = "results"
title = "T"
run = "{spec}"
seeds = [0]
tested = "cm_ntm"
[[rows]]
model = "cm_ntm"
label = "paper's form"
[[rows]]
model = "cm_ntm+"
label = "preset"
[[comparisons]]
tested = "cm_ntm+"
against = ["cm_ntm"]
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = caption_project(tmp_path_factory.mktemp("presets"), "words", SPEC)
    (made / "t.toml").write_text(TABLE.format(spec=made / "words.toml"))
    done = call(made, "run", str(made / "words.toml"))
    assert done.exit_code == 0, done.output
    return made


def test_shipped_presets_are_options_of_their_models() -> None:
    assert "cm_ntm+" in presets()
    for name, preset in presets().items():
        assert name not in models.names()
        model_options(preset.model, preset.options)
        Training.model_validate(preset.training)


def test_a_preset_is_trained_evaluated_and_tabulated_beside_the_papers_form(project: Path) -> None:
    spec = str(project / "words.toml")
    before = {path: path.read_bytes() for path in project.glob("out/runs/world/cm_ntm/*/results.h5")}
    small = ("--set", "models.cm_ntm+.hidden=6")
    done = call(project, "train", spec, "--model", "cm_ntm+", "--seeds", "0", *small)
    assert done.exit_code == 0 and "cm_ntm+ seed 0: trained" in done.output, done.output
    (summary,) = json.loads(call(project, "evaluate", spec, "--model", "cm_ntm+", *small, "--json").stdout)
    assert summary["model"] == "cm_ntm+"
    both = json.loads(call(project, "evaluate", spec, *small, "--json").stdout)
    assert [s["model"] for s in both] == ["cm_ntm", "cm_ntm+"]  # --set lists the preset in the spec
    listed = load_spec(spec, [change for change in small if change != "--set"])
    experiment = Experiment(listed, load_dataset(listed, project / "data"), Workspace(project / "out"), "cpu")
    assert [(t.label, t.name) for t in trained_runs(experiment)[0]] == [("cm_ntm", "cm_ntm"), ("cm_ntm+", "cm_ntm+")]
    table = json.loads(call(project, "table", str(project / "t.toml"), "--json", *small).stdout)
    cells = {row["label"]: row["cells"][0] for row in table["blocks"][0]["rows"]}
    assert cells["preset"]["runs"] == [summary["run"]] and cells["paper's form"]["runs"] != [summary["run"]]
    assert {(s["a"], s["b"]) for s in table["statements"]} == {("preset", "paper's form")}
    assert before and all(path.read_bytes() == content for path, content in before.items())


def test_the_same_options_under_the_models_own_name_are_the_same_run(project: Path) -> None:
    spec = load_spec(str(project / "words.toml"))
    preset = presets()["cm_ntm+"]
    listed = spec.model_copy(update={"models": {"cm_ntm": {**preset.options, "training": preset.training}}})
    (project / "listed.toml").write_text(spec_toml(listed))
    assert make_run(load_spec(str(project / "listed.toml")), "cm_ntm", 0) == make_run(spec, "cm_ntm+", 0)


def test_an_unknown_model_is_told_the_nearest_preset(project: Path) -> None:
    done = call(project, "train", str(project / "words.toml"), "--model", "cm_ntm++")
    assert done.exit_code == 4 and "cm_ntm+" in done.output
    assert call(project, "ls", "presets").stdout.startswith("cm_ntm+")
