"""Searches as a user types them: resumed, and blind to the test sessions."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from click.testing import Result

from manifests.errors import FashionNTMError
from manifests.load import load_dataset, load_spec
from pipeline.analysis.tuning.search import tune
from pipeline.core.workspace import Workspace
from tests.caption_project import call, caption_project
from tests.pipeline.analysis.small_spec import SPEC

Run = Callable[..., Result]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return caption_project(tmp_path_factory.mktemp("project"), "small", SPEC)


@pytest.fixture
def cli(project: Path) -> Run:
    return partial(call, project)


@pytest.fixture(scope="module")
def done(project: Path) -> Path:
    """The output folder with the features, and a run without training."""
    made = call(project, "run", str(project / "small.toml"), "--model", "avg")
    assert made.exit_code == 0, made.output
    return project / "out"


def test_tune_resumes_never_sees_a_test_session_and_writes_a_spec(cli: Run, project: Path, done: Path) -> None:
    words = [
        str(project / "small.toml"),
        "--model",
        "lstm",
        "--search",
        "hidden=2..5",
        "--search",
        "training.learning_rate=1e-3..1e-1:log",
        "--folds",
        "2",
        "--json",
    ]
    first = cli("tune", *words, "--trials", "2")
    assert first.exit_code == 0, first.output
    found = json.loads(first.stdout)
    log = Path(found["log"])
    log.write_bytes(log.read_bytes() + b'{"number": 2, "par')  # an interruption cut a line off
    resumed = json.loads(cli("tune", *words, "--trials", "3").stdout)
    assert [t["number"] for t in resumed["trials"]] == [0, 1, 2]
    assert resumed["trials"][:2] == found["trials"]
    whole = json.loads(cli("tune", *words, "--trials", "3").stdout)
    assert whole["trials"] == resumed["trials"]
    assert sum(whole["fold_sessions"]) == 90
    best = max(whole["trials"], key=lambda t: t["value"])
    spec = load_spec(whole["spec"])
    assert spec.models["lstm"]["hidden"] == best["params"]["hidden"]
    assert spec.models["lstm"]["training"]["learning_rate"] == best["params"]["training.learning_rate"]
    ran = cli("run", whole["spec"], "--model", "lstm")
    assert ran.exit_code == 0, ran.output


def test_tune_reads_no_test_session(project: Path, done: Path) -> None:
    """The same search on a dataset whose test sessions are other ones gives the same trials to the last digit."""
    spec = load_spec(str(project / "small.toml"))
    dataset = load_dataset(spec, project / "data")
    changed = tuple(
        s if s.split == "train" else s.model_copy(update={"target": s.turns[0].reference}) for s in dataset.sessions
    )
    found = []
    for given in (dataset, dataset.model_copy(update={"sessions": changed})):
        result = tune(spec, given, Workspace(done), "lstm", ["hidden=2,3"], folds=2, trials=2, device="cpu")
        found.append([(t.params, t.folds) for t in result.trials])
        result.log.unlink()
    assert found[0] == found[1]


def test_tpe_learns_from_the_log(project: Path, done: Path) -> None:
    pytest.importorskip("optuna")
    spec = load_spec(str(project / "small.toml"))
    dataset = load_dataset(spec, project / "data")
    result = tune(spec, dataset, Workspace(done), "lstm", ["hidden=2,3"], "tpe", 1, 3, device="cpu")
    assert len(result.trials) == 3 and result.best.value is not None
    with pytest.raises(FashionNTMError, match="lstm has no such option"):
        tune(spec, dataset, Workspace(done), "lstm", ["hiden=2,3"], device="cpu")
