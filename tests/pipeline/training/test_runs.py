"""Run folders: one identity, written whole, never mistaken for finished; checkpoints that refuse what is not theirs."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import cache.lease
from manifests.schema import Training, Validation
from pipeline.training.checkpoint import MissingCheckpointError, load_model, save_model
from pipeline.training.data import SessionFeatures, sessions_digest
from pipeline.training.errors import CheckpointError, DivergenceError, RunError
from pipeline.training.job import Execution, TrainRequest, train_runs
from pipeline.training.models import build_model
from pipeline.training.runs import DIAGNOSTICS, METRICS, Run, RunFolder, list_runs, run_identity
from pipeline.training.validate import embed
from tests.pipeline.training.sessions import cumulative, sessions
from tests.processes import forked

QUICK = Training(epochs=3, batch_size=16, learning_rate=1e-3)


@pytest.fixture(scope="module")
def features() -> SessionFeatures:
    return cumulative(20, seed=1)


def train(runs: Path, features: SessionFeatures, name: str = "lstm", seed: int = 0, **more: Any):
    options = {"hidden": 8} if name == "lstm" else {}
    fields = {key: more.pop(key) for key in ("validation", "validation_features") if key in more}
    training = more.pop("training", QUICK)
    request = TrainRequest(runs, "toy", "f" * 64, Run(name, options, training, seed), features, **fields)
    (outcome,) = train_runs([request], Execution(threads=1, **more))
    if isinstance(outcome, DivergenceError):
        raise outcome
    return outcome


def identity(model: str = "lstm", **changed: Any) -> str:
    fields: dict[str, Any] = {"store": "a", "sessions": "b", "validation": Validation()}
    own: dict[str, Any] = {"options": {}, "training": QUICK, "seed": 0}
    own |= {key: changed.pop(key) for key in own if key in changed}
    return run_identity(Run(model, **own), **fields | changed).id


def test_identity_is_of_everything_that_changes_the_numbers() -> None:
    assert len(identity()) == 12 and identity() == identity()
    variants = [
        identity(store="z"),
        identity(sessions="z"),
        identity(options={"hidden": 8}),
        identity(training=QUICK.model_copy(update={"epochs": 4})),
        identity(validation_sessions="v"),
        identity(validation_sessions="w"),
        identity(seed=1),
        identity("v_ntm"),
    ]
    assert len({identity(), *variants}) == len(variants) + 1


def test_models_without_training_have_one_run_for_all_seeds() -> None:
    changed = QUICK.model_copy(update={"epochs": 4})
    assert identity("avg") == identity("avg", seed=3, training=changed)
    assert identity("ewma") != identity("ewma", validation_sessions="v")


def test_sessions_digest_sees_texts_and_order() -> None:
    one, other = sessions((2, 3))
    assert sessions_digest([one, other]) != sessions_digest([other, one])
    turn = one.turns[0].model_copy(update={"captions": ("another",)})
    assert sessions_digest([one]) != sessions_digest([one.model_copy(update={"turns": (turn, *one.turns[1:])})])


def test_a_run_is_trained_once(tmp_path: Path, features: SessionFeatures) -> None:
    seen: list[dict[str, Any]] = []
    first = train(tmp_path, features, spec={"name": "s"}, progress=lambda _, line: seen.append(line))
    folder = first.folder
    assert not first.reused and folder.state == "finished" and len(seen) == 3
    assert folder.path.parent == tmp_path / "toy" / "lstm" and folder.metrics() == seen
    record = folder.record()
    assert (
        record["spec"] == {"name": "s"} and record["identity"]["seed"] == 0 and record["execution"]["device"] == "cpu"
    )
    assert record["finished"]["epochs"] == 3 and record["finished"]["loss"] == seen[-1]["loss"]
    model = load_model(folder.path)

    second = train(tmp_path, features, progress=lambda _, line: seen.append(line))
    assert second.reused and second.summary == first.summary and len(seen) == 3
    third = train(tmp_path, features, progress=lambda _, line: seen.append(line), force=True)
    assert not third.reused and len(seen) == 6 and len(folder.metrics()) == 3
    assert torch.equal(embed(load_model(folder.path), features), embed(model, features))
    assert [run.path for run in list_runs(tmp_path)] == [folder.path]


@pytest.mark.parametrize("name", ["avg", "ewma", "cat", "last"])
def test_models_without_training_make_a_run_too(tmp_path: Path, features: SessionFeatures, name: str) -> None:
    run = train(tmp_path, features, name)
    assert run.folder.state == "finished" and run.summary["epochs"] == 0
    assert embed(load_model(run.folder.path), features).shape == (len(features), features.dim)
    assert train(tmp_path, features, name, seed=4).reused


def test_early_stopping_is_summarised_by_its_best_epoch(tmp_path: Path, features: SessionFeatures) -> None:
    validation = cumulative(30, seed=2)
    training = Training(epochs=40, batch_size=16, learning_rate=3e-2, early_stopping=2)
    run = train(
        tmp_path, features, training=training, validation=Validation(fraction=0.1), validation_features=validation
    )
    lines = run.folder.metrics()
    assert run.summary["validation"] == lines[run.summary["best"] - 1]["validation"]
    assert run.summary["validation"]["mean"] == max(line["validation"]["mean"] for line in lines)


def test_a_failed_run_keeps_its_metrics_and_starts_anew(tmp_path: Path, features: SessionFeatures) -> None:
    hot = QUICK.model_copy(update={"learning_rate": 1e38, "epochs": 5})
    with pytest.raises(DivergenceError):
        train(tmp_path, features, training=hot)
    (folder,) = list_runs(tmp_path)
    assert folder.state == "failed" and "DivergenceError" in folder.record()["failed"]
    assert "the loss is" in folder.record()["failed"]
    with pytest.raises(DivergenceError):  # not mistaken for a finished run
        train(tmp_path, features, training=hot)


def test_an_interrupted_run_is_incomplete_and_goes_on(tmp_path: Path, features: SessionFeatures) -> None:
    def interrupt(_: TrainRequest, metrics: dict[str, Any]) -> None:
        if metrics["epoch"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, features, progress=interrupt)
    (folder,) = list_runs(tmp_path)
    assert folder.state == "incomplete" and len(folder.metrics()) == 2
    done = train(tmp_path, features)
    assert done.folder == folder and folder.state == "finished" and [m["epoch"] for m in folder.metrics()] == [1, 2, 3]


def wait_after_an_epoch(_: TrainRequest, metrics: dict[str, Any]) -> None:
    print(metrics["epoch"], flush=True)
    time.sleep(60)


def test_a_killed_run_holds_nobody_up_and_is_trained_again(tmp_path: Path, features: SessionFeatures) -> None:
    request = TrainRequest(tmp_path, "toy", "f" * 64, Run("lstm", {"hidden": 8}, QUICK), features)
    with forked(train_runs, [request], Execution(threads=1, progress=wait_after_an_epoch)) as program:
        assert program.stdout.readline().strip() == "1"
        with pytest.raises(RunError, match="trained by another process"):
            train(tmp_path, features)
        os.kill(program.pid, signal.SIGKILL)
    (folder,) = list_runs(tmp_path)
    assert folder.state == "incomplete"
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            assert not train(tmp_path, features).reused
            break
        except RunError:  # the system is still tidying up after the killed process
            time.sleep(0.05)
    assert folder.state == "finished"


def test_states_of_a_folder(tmp_path: Path) -> None:
    folder = RunFolder.of(tmp_path, "toy", "lstm", "0" * 12)
    assert (folder.state, folder.dataset, folder.model, folder.id) == ("absent", "toy", "lstm", "0" * 12)
    folder.path.mkdir(parents=True)
    assert folder.state == "incomplete" and folder.metrics() == []
    folder.run_file.write_text("{not json")
    assert folder.state == "damaged"
    with pytest.raises(RunError, match=r"run\.json: not valid JSON"):
        folder.record()
    (folder.path / METRICS).write_text('{"epoch": 1}\n{"epo')
    assert folder.metrics() == [{"epoch": 1}]


def test_checkpoints_refuse_what_is_not_theirs(tmp_path: Path) -> None:
    with pytest.raises(MissingCheckpointError, match="run `train` first") as missing:
        load_model(tmp_path)
    assert missing.value.exit_code == 3
    model = build_model("lstm", {"hidden": 4}, 6)
    save_model(tmp_path, model)
    sidecar = tmp_path / "model.json"
    whole = json.loads(sidecar.read_text())

    def refused(message: str, **changed: Any) -> None:
        sidecar.write_text(json.dumps({**whole, **changed}))
        with pytest.raises(CheckpointError, match=message):
            load_model(tmp_path)

    refused("lstm version 99, this program has version 1", version=99)
    refused("format 9", format=9)
    refused(r"tensor .* is \[.*\] in the file and \[.*\] by the configuration", dim=7)
    refused("absent, or not the file", sha256="0" * 64)
    sidecar.write_text("{}")
    with pytest.raises(CheckpointError, match="not a checkpoint description"):
        load_model(tmp_path)
    sidecar.write_text(json.dumps(whole))
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="train this run again"):
        load_model(tmp_path)


def test_checkpoints_keep_the_precision(tmp_path: Path) -> None:
    model = build_model("cm_ntm", {"stages": 2, "hidden": 4}, 6).double()
    save_model(tmp_path, model)
    loaded = load_model(tmp_path)
    for key, value in model.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[key]) and value.dtype == loaded.state_dict()[key].dtype


def test_a_finished_run_is_sealed(tmp_path: Path, features: SessionFeatures) -> None:
    folder = train(tmp_path, features).folder
    assert folder.sealed and folder.state == "finished" and not folder.damage
    assert list(json.loads((folder.path / "seal.json").read_text())["files"]) == [
        "run.json",
        "model.json",
        "model.safetensors",
        "metrics.jsonl",
    ]


@pytest.mark.parametrize("name", ["run.json", "model.json", "model.safetensors", "metrics.jsonl", "seal.json"])
def test_every_changed_byte_of_a_finished_run_is_found_and_the_run_trained_again(
    tmp_path: Path, features: SessionFeatures, name: str
) -> None:
    folder = train(tmp_path, features).folder
    file = folder.path / name
    whole = file.read_bytes()
    for at in range(0, len(whole), max(1, len(whole) // 150)):
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        assert folder.state != "finished"
        with pytest.raises(CheckpointError, match=rf"{name}.*run `train` on its spec"):
            load_model(folder.path)
    assert folder.state != "finished"
    assert not train(tmp_path, features).reused and folder.state == "finished"
    assert train(tmp_path, features).reused


def test_an_option_written_into_a_model_is_not_taken(tmp_path: Path, features: SessionFeatures) -> None:
    folder = train(tmp_path, features, "avg").folder
    sidecar = folder.path / "model.json"
    about = json.loads(sidecar.read_text())
    sidecar.write_text(json.dumps({**about, "options": {**about["options"], "residual": True}}))
    assert folder.state == "damaged" and "model.json" in folder.damage
    with pytest.raises(CheckpointError, match=r"model\.json: damaged"):
        load_model(folder.path)


def test_a_run_copied_over_another_is_not_taken_for_it(tmp_path: Path, features: SessionFeatures) -> None:
    one, other = (train(tmp_path, features, seed=seed).folder for seed in (0, 1))
    shutil.copytree(one.path, other.path, dirs_exist_ok=True)
    assert one.state == "finished" and other.state == "damaged"
    with pytest.raises(CheckpointError, match=f"its seal is of run {one.id}, not of run {other.id}"):
        load_model(other.path)
    assert not train(tmp_path, features, seed=1).reused and other.state == "finished"


def test_a_run_made_before_there_were_seals_is_read_and_listed_as_such(
    tmp_path: Path, features: SessionFeatures
) -> None:
    folder = train(tmp_path, features).folder
    (folder.path / "seal.json").unlink()
    assert folder.state == "finished" and not folder.sealed
    load_model(folder.path)
    assert train(tmp_path, features).reused


def test_a_run_is_written_only_under_its_lease(tmp_path: Path) -> None:
    folder = RunFolder.of(tmp_path, "toy", "lstm", "0" * 12)
    folder.path.mkdir(parents=True)
    folder.run_file.write_text("{}")
    for write in (
        lambda: folder.append({}),
        lambda: folder.append({}, DIAGNOSTICS),
        lambda: folder.fail(ValueError("x")),
        lambda: folder.save_model(build_model("avg", {}, 4)),
    ):
        with pytest.raises(RunError, match="not held for training"):
            write()


def stopped_trainer(place: Path, when: str, said: Path) -> None:
    """A trainer that stops itself, in a forked process."""
    cache.lease._kernel = lambda: "another machine"
    model, lines = build_model("lstm", {"hidden": 8}, 4), []

    def stop() -> None:
        os.kill(os.getpid(), signal.SIGSTOP)

    try:
        with RunFolder(place).training({"who": "the first"}) as held:
            held.append({"epoch": 1})
            if when == "between writes":
                stop()
                for write in (
                    lambda: held.append({"epoch": 2}),
                    lambda: held.append({"epoch": 2}, DIAGNOSTICS),
                    lambda: held.save_model(model),
                    lambda: held.finish({"epochs": 2}),
                    lambda: held.fail(ValueError("late")),
                    lambda: held._write({"who": "the first"}),
                ):
                    try:
                        write()
                    except RunError as error:
                        lines.append(f"refused: {error}")
            check = held.lease.check

            def late() -> None:
                check()
                stop()  # it has seen its own lease, and is woken when another process has it

            held.lease.check = late  # type: ignore[method-assign]
            held.append({"epoch": 2}) if when == "in a line" else held.save_model(model)
    except Exception as error:
        lines.append(f"ended: {type(error).__name__}")
    said.write_text("\n".join(lines))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.parametrize("when", ["between writes", "in a line", "in a file"])
def test_a_trainer_stopped_past_its_lease_changes_nothing_of_the_next(
    tmp_path: Path, features: SessionFeatures, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """A real process, stopped, its lease expired and taken over, and woken while the other one trains."""
    # as on a shared folder without locks: the lease's age decides
    monkeypatch.setattr(cache.lease, "_locked", lambda handle: None)
    place, said = tmp_path / "toy" / "lstm" / ("0" * 12), tmp_path / "said"
    process = multiprocessing.get_context("fork").Process(target=stopped_trainer, args=(place, when, said))
    process.start()
    monkeypatch.setattr(cache.lease, "STALE", 0.5)
    try:
        assert os.WIFSTOPPED(os.waitpid(process.pid, os.WUNTRACED)[1])
        time.sleep(1)
        with RunFolder(place).training({"who": "the second"}) as held:
            held.append({"epoch": 1, "of": "the second"})
            held.save_model(build_model("lstm", {"hidden": 8}, 6))
            before = {f.name: f.read_bytes() for f in place.iterdir() if f.name in WRITTEN}
            os.kill(process.pid, signal.SIGCONT)
            process.join(60)
            after = {f.name: f.read_bytes() for f in place.iterdir() if f.name in WRITTEN}
            held.finish({"epochs": 1})
    finally:
        process.kill()
    assert before == after and sorted(after) == ["metrics.jsonl", "model.json", "model.safetensors", "run.json"]
    if when == "between writes":
        lines = said.read_text()
        assert lines.count("refused: another process trains this run now") == 6
        assert f"process {os.getpid()} on" in lines and "ended: RunError" in lines
    folder = RunFolder(place)
    assert folder.state == "finished" and folder.record()["who"] == "the second" and len(folder.metrics()) == 1


WRITTEN = ("run.json", "metrics.jsonl", "diagnostics.jsonl", "model.json", "model.safetensors", "seal.json")
