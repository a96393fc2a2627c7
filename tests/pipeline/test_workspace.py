"""What an output folder remembers of the steps that were measured in it."""

from __future__ import annotations

import json
from pathlib import Path

from pipeline.identities import make_run
from pipeline.stage2 import step_shape
from pipeline.training.backends import BackendChoice
from pipeline.training.threads import ThreadChoice, candidates
from pipeline.workspace import Pinned, Workspace
from tests.pipeline.small_demo import Project


def test_each_shape_is_pinned_by_itself(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    assert workspace.pinned("a") == Pinned("auto", None)
    workspace.pin("a", BackendChoice("reference"))  # nothing was measured
    assert not list(tmp_path.iterdir())
    workspace.pin("a", BackendChoice("fast", ThreadChoice(2, {1: 3.0, 2: 2.0}), {"reference": 4.0, "fast": 2.0}))
    workspace.pin("b", BackendChoice("fast", ThreadChoice(1, {1: 2.0, 2: 2.1}), {"fast": 2.0}), backend=False)
    assert workspace.pinned("a") == Pinned("fast", 2) and workspace.pinned("b") == Pinned("auto", 1)
    assert (workspace.pinned("a").candidates, workspace.pinned("c").candidates) == ((2,), candidates())
    for file in (tmp_path / "steps").iterdir():
        file.write_text("torn", encoding="utf-8")
    assert workspace.pinned("a") == Pinned("auto", None)


def test_a_run_is_trained_as_its_shape_was_pinned(demo: Project) -> None:
    """The number of threads belongs to a model, not to the folder."""
    stage, found = demo.stage(), {}
    for hidden, threads in ((5, 2), (6, 1)):
        run = make_run(demo.spec, "cm_ntm", 0, {"hidden": hidden}, {"epochs": 1})
        shape = step_shape(run, stage.parts[0])
        demo.workspace.pin(
            shape, BackendChoice("reference", ThreadChoice(threads, {1: 1.0, 2: 1.0}), {"reference": 1.0})
        )
        record = json.loads((stage.train(run).folder.path / "run.json").read_text())
        found[hidden] = (record["execution"]["threads"], record["execution"]["backend"])
    assert found == {5: (2, "reference"), 6: (1, "reference")}
