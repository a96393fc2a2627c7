"""How a run is trained, as its folder records it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from manifests.load import load_spec
from pipeline.core.workspace import extraction_request
from pipeline.jobs.experiment import Experiment
from pipeline.jobs.identities import Run, make_run
from pipeline.jobs.stage2 import PLAIN, TrainOptions, train
from pipeline.training.job import Trained
from tests.pipeline.small_demo import Project


def test_a_checkout_elsewhere_asks_for_the_same_extraction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = load_spec("demo")
    monkeypatch.setattr("manifests.load.__file__", str(tmp_path / "manifests" / "load.py"))
    there = load_spec("demo")
    assert there.extractor != here.extractor and there.extractor.options["model"].startswith(str(tmp_path))
    monkeypatch.undo()
    before = extraction_request(here)
    monkeypatch.setattr("manifests.load.__file__", str(tmp_path / "manifests" / "load.py"))
    assert extraction_request(there) == before


def trained(experiment: Experiment, run: Run, options: TrainOptions = PLAIN) -> Trained:
    ((_, done),) = train(experiment, [run], options)
    assert isinstance(done, Trained)
    return done


def test_the_same_run_is_trained_the_same_way(demo: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """Backend and threads follow from the machine and the options, not from a measurement; they are in run.json."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    experiment, before, found = demo.experiment(), torch.get_num_threads(), {}
    for hidden, how in ((5, TrainOptions()), (6, TrainOptions(backend="reference", threads=2))):
        run = make_run(demo.spec, "cm_ntm", 0, {"hidden": hidden}, {"epochs": 1})
        record = json.loads((trained(experiment, run, how).folder.path / "run.json").read_text())
        found[hidden] = (record["execution"]["threads"], record["execution"]["backend"])
    first = "numba" if experiment.device.type == "cpu" else "triton"
    assert found == {5: (1, first), 6: (2, "reference")}
    assert torch.get_num_threads() == before and not (demo.workspace.out / "steps").exists()


def test_another_backend_does_not_train_a_finished_run_again(demo: Project) -> None:
    experiment, run = demo.experiment(), make_run(demo.spec, "cm_ntm", 0, {"hidden": 7}, {"epochs": 1})
    first = trained(experiment, run)
    weights = (first.folder.path / "model.safetensors").read_bytes()
    again = trained(experiment, run, TrainOptions(backend="reference", threads=2))
    assert again.reused and again.folder.id == first.folder.id
    assert (first.folder.path / "model.safetensors").read_bytes() == weights
