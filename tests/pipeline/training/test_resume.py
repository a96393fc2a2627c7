"""An interrupted training goes on from its last saved epoch, and ends with the bits of an uninterrupted one."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from manifests.identity import digest
from manifests.schema import Training, Validation
from pipeline.training import resume
from pipeline.training.data import SessionFeatures
from pipeline.training.job import Execution, Trained, TrainRequest, train_runs
from pipeline.training.runs import METRICS, Run, RunFolder
from tests.hostile.makers import damage
from tests.pipeline.training.sessions import cumulative
from tests.processes import forked

STOPS = Training(epochs=6, batch_size=16, learning_rate=1e-2, early_stopping=2, ema=0.9, hard_groups=2)
MODELS: dict[str, tuple[dict[str, Any], str, Training]] = {
    "lstm": ({"hidden": 8, "dropout": 0.2}, "reference", STOPS),
    "cm_ntm": ({"stages": 2, "hidden": 8, "dropout": 0.2}, "fast", STOPS.model_copy(update={"recombine": 0.5})),
    "no_memory": ({"hidden": 8}, "reference", Training(epochs=6, batch_size=16, drop_turns=0.3)),
}


@pytest.fixture(autouse=True)
def every_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resume.Pace, "due", lambda self: True)


@pytest.fixture(scope="module")
def features() -> SessionFeatures:
    return cumulative(40, seed=1)


def request(runs: Path, features: SessionFeatures, name: str, seed: int = 0) -> TrainRequest:
    options, _, training = MODELS[name]
    held = cumulative(12, seed=2) if training.early_stopping else None
    fraction = Validation(fraction=0.3 if held else 0.0)
    return TrainRequest(runs, "toy", "f" * 64, Run(name, options, training, seed), features, fraction, held)


def train(requests: list[TrainRequest], **more: Any) -> tuple[list[Trained], list[tuple[int, int]]]:
    """The runs, and (seed, epoch after which it went on) of each that was resumed."""
    found: list[tuple[int, int]] = []
    backend = MODELS[requests[0].run.model][1]
    done = train_runs(
        requests,
        Execution(threads=1, backend=backend, resumed=lambda r, epoch: found.append((r.run.seed, epoch)), **more),
    )
    return done, found  # type: ignore[return-value]


def interrupt(requests: list[TrainRequest], after: int) -> None:
    def stop(_: TrainRequest, metrics: dict[str, Any]) -> None:
        if metrics["epoch"] == after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(requests, progress=stop)


def contents(folder: RunFolder) -> tuple[bytes, list[dict[str, Any]]]:
    lines = [{k: v for k, v in line.items() if k != "seconds"} for line in folder.metrics()]
    return (folder.path / "model.safetensors").read_bytes(), lines


@pytest.mark.parametrize("name", MODELS)
def test_bits_are_those_of_an_uninterrupted_run(tmp_path: Path, features: SessionFeatures, name: str) -> None:
    whole, none = train([request(tmp_path / "whole", features, name)])
    given = request(tmp_path / "cut", features, name)
    interrupt([given], 2)
    interrupt([given], 3)  # a second time, in the resumed run
    done, resumed = train([given])
    assert (none, resumed) == ([], [(0, 2)])
    assert contents(done[0].folder) == contents(whole[0].folder)
    assert done[0].folder.state == "finished" and not list(given.folder.path.glob("resume*"))
    assert done[0].folder.record()["execution"]["resumed_after_epoch"] == 2


@pytest.mark.slow
def test_runs_side_by_side_go_on_from_their_own_epochs(tmp_path: Path, features: SessionFeatures) -> None:
    def requests(place: str) -> list[TrainRequest]:
        return [request(tmp_path / place, features, "cm_ntm", seed) for seed in range(3)]

    whole, _ = train(requests("whole"))
    interrupt(requests("cut"), 3)
    (requests("cut")[1].folder.path / "resume.json").unlink()
    done, resumed = train(requests("cut"))
    assert resumed == [(0, 2), (2, 2)]
    for one, other in zip(done, whole, strict=True):
        lines, expected = contents(one.folder)[1], contents(other.folder)[1]
        losses = [line.pop("loss") for line in expected]  # products of one and of three runs round differently
        assert [line.pop("loss") for line in lines] == pytest.approx(losses, rel=1e-5)
        assert lines == expected


def wait_in_epoch_4(_: TrainRequest, metrics: dict[str, Any]) -> None:
    if metrics["epoch"] == 4:
        print("epoch 4", flush=True)
        time.sleep(60)


def test_a_killed_training_goes_on_with_the_same_bits(tmp_path: Path, features: SessionFeatures) -> None:
    whole, _ = train([request(tmp_path / "whole", features, "cm_ntm")])
    given = request(tmp_path / "cut", features, "cm_ntm")
    execution = Execution(threads=1, backend="fast", progress=wait_in_epoch_4)
    with forked(train_runs, [given], execution) as program:
        assert program.stdout.readline() == "epoch 4\n"
        os.kill(program.pid, signal.SIGKILL)
    assert given.folder.state == "incomplete" and len(given.folder.metrics()) == 4
    done, resumed = train([given])
    assert resumed == [(0, 3)] and contents(done[0].folder) == contents(whole[0].folder)


@pytest.mark.parametrize("damage", ["byte", "about", "tensors", "metrics", "torch"])
def test_a_damaged_state_is_not_used(tmp_path: Path, features: SessionFeatures, damage: str) -> None:
    given = request(tmp_path, features, "lstm")
    interrupt([given], 3)
    (tensors,) = given.folder.path.glob("resume-*.safetensors")
    about = given.folder.path / "resume.json"
    if damage == "byte":
        data = bytearray(tensors.read_bytes())
        data[-1] ^= 1
        tensors.write_bytes(data)
    elif damage == "about":
        about.write_text("[" * 5000)
    elif damage == "tensors":
        tensors.unlink()
    elif damage == "metrics":
        (given.folder.path / METRICS).write_text("{}\n")
    else:
        values = json.loads(about.read_text()) | {"torch": "0.1"}
        del values["check"]
        about.write_text(json.dumps(values | {"check": digest(values)}))
    done, resumed = train([given])
    assert resumed == [] and done[0].folder.state == "finished"


def test_another_back_end_starts_again(tmp_path: Path, features: SessionFeatures) -> None:
    given = request(tmp_path, features, "cm_ntm")
    interrupt([given], 3)
    (done,) = train_runs([given], Execution(threads=1, backend="reference", resumed=lambda *_: pytest.fail("resumed")))
    assert done.folder.state == "finished"  # type: ignore[union-attr]


def test_saving_takes_a_tenth_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    now = [0.0]
    monkeypatch.setattr(resume.time, "perf_counter", lambda: now[0])
    pace = resume.Pace()
    assert pace.due()
    now[0] = 1.0
    pace.saved(0.0)  # a save of one second
    now[0] = 10.9
    assert not pace.due()
    now[0] = 11.0
    assert pace.due()


def test_a_state_has_no_more_than_its_run(tmp_path: Path, features: SessionFeatures) -> None:
    given = request(tmp_path, features, "lstm")
    interrupt([given], 3)
    state = given.folder.load_state("reference")
    assert state is not None and state.epoch == 2 and state.best_epoch in (1, 2)
    assert all(torch.isfinite(value).all() for value in state.tensors.values())
    assert {name.partition(".")[0] for name in state.tensors} == {"weights", "adam", "average", "best"}


def test_a_state_damaged_at_random_is_whole_or_not_used(tmp_path: Path, features: SessionFeatures) -> None:
    """A state that is still read has the values that were saved (an insertion of blanks, an equal value)."""
    given = request(tmp_path, features, "lstm")
    interrupt([given], 3)
    folder, rng = given.folder.path, random.Random(0)
    whole = resume.load_state(folder, "reference")
    assert whole is not None
    used = 0
    for file in (folder / "resume.json", *folder.glob("resume-*.safetensors")):
        kept = file.read_bytes()
        for _ in range(150):
            file.write_bytes(damage(kept, rng, file.suffix == ".json"))
            found = resume.load_state(folder, "reference")
            if found is not None:
                used += 1
                assert (found.epoch, found.best, found.best_epoch) == (whole.epoch, whole.best, whole.best_epoch)
                assert found.tensors.keys() == whole.tensors.keys()
                assert all(torch.equal(value, whole.tensors[name]) for name, value in found.tensors.items())
        file.write_bytes(kept)
    assert used < 150
    file.write_bytes(damage(kept, random.Random(1), False))
    done, resumed = train([given])
    assert resumed == [] and done[0].folder.state == "finished"
