"""Real trackers: what each has after runs side by side, an interruption, a continuation and a second training."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.jobs.trackers import TRACKERS, Followed, Trackers

EPOCH = {"seconds": 1, "validation": {"R@5": 20.0, "mean": 21.0}, "reset": True}
RUNS = ("a" * 12, "b" * 12)


def followed(run: str) -> Followed:
    config = {"seed": 0, "model": {"name": "cm_ntm", "options": {"stages": 2}}}
    return Followed(id=run, name=f"demo cm_ntm seed 0 {run}", config=config)


def log_runs(name: str, out: Path) -> None:
    """Log two runs side by side; the second is interrupted after epoch 2 and goes on."""
    said: list[str] = []
    first = Trackers((name,), out, said.append)
    for epoch in (1, 2):
        for run in RUNS:
            first.log(followed(run), EPOCH | {"epoch": epoch, "loss": 1 / epoch})
    first.close(finished=False)
    second = Trackers((name,), out, said.append)
    second.log(followed(RUNS[1]), EPOCH | {"epoch": 3, "loss": 0.25})
    second.close()
    assert said == []


@pytest.fixture
def logged(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The output folder after ``log_runs`` in a process of its own, whose environment names places below it."""
    name = request.param
    pytest.importorskip(name, reason=f"no {name}: pip install 'fashion-ntm[{name}]'")
    if name == "tensorboard":  # it reads no variable, and torch takes seconds to import
        log_runs(name, tmp_path)
        return tmp_path
    own = {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "TRACKIO_DIR": str(tmp_path / "trackio")}
    code = f"from tests.pipeline.jobs.test_trackers import log_runs, Path; log_runs({name!r}, Path({str(tmp_path)!r}))"
    environment = {k: v for k, v in os.environ.items() if k != "MLFLOW_TRACKING_URI"} | own
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "", "stdout is for results"
    return tmp_path


def only(name: str) -> Any:
    return pytest.mark.parametrize("logged", [name], indirect=True)


@only("tensorboard")
def test_tensorboard(logged: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folders = sorted((logged / "tensorboard").iterdir())
    assert [folder.name for folder in folders] == [f"demo-cm_ntm-seed-0-{run}" for run in RUNS]
    for folder, expected in zip(folders, ([1.0, 0.5], [1.0, 0.5, 0.25]), strict=True):
        found: Any = EventAccumulator(str(folder))
        found.Reload()
        assert [(e.step, e.value) for e in found.Scalars("loss")] == list(enumerate(expected, start=1))
        assert [e.value for e in found.Scalars("validation/mean")] == [21.0] * len(expected)


@only("mlflow")
def test_mlflow(logged: Path) -> None:
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{logged / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("fashion-ntm")
    assert experiment.artifact_location == (logged / "mlflow-artifacts").as_uri()
    runs = {run.info.run_name[-12:]: run for run in client.search_runs([experiment.experiment_id])}
    assert {name: run.info.status for name, run in runs.items()} == {RUNS[0]: "KILLED", RUNS[1]: "FINISHED"}
    history = client.get_metric_history(runs[RUNS[1]].info.run_id, "loss")
    assert [(m.step, m.value) for m in history] == [(1, 1.0), (2, 0.5), (3, 0.25)]
    assert runs[RUNS[0]].data.metrics["validation/R_at_5"] == 20.0
    assert runs[RUNS[0]].data.params["model.options.stages"] == "2"


@only("trackio")
def test_trackio(logged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sqlite3

    with sqlite3.connect(logged / "trackio" / "fashion-ntm.db") as database:
        rows = database.execute("SELECT run_name, step, metrics FROM metrics ORDER BY step").fetchall()
    for run, expected in zip(RUNS, ([1.0, 0.5], [1.0, 0.5, 0.25]), strict=True):
        own = [(step, json.loads(text)) for name, step, text in rows if name.endswith(run)]
        assert [(step, values["loss"]) for step, values in own] == list(enumerate(expected, start=1))
        assert all(values["validation/mean"] == 21.0 for _, values in own)


@only("wandb")
def test_wandb(logged: Path) -> None:
    found: dict[str, list[tuple[float, float]]] = {run: [] for run in RUNS}
    for file in sorted((logged / "wandb").glob("offline-run-*/*.wandb")):
        for record in records(file):
            if record.HasField("history"):
                values = {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in record.history.item}
                assert values["validation/mean"] == 21.0
                found[file.stem.removeprefix("run-")].append((values["epoch"], values["loss"]))
    assert found == {RUNS[0]: [(1, 1.0), (2, 0.5)], RUNS[1]: [(1, 1.0), (2, 0.5), (3, 0.25)]}


def records(file: Path) -> Iterator[Any]:
    """Records of an offline run: after 7 bytes, blocks of 32 KiB with parts of (checksum, length, kind, bytes)."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, place, held = file.read_bytes(), 7, b""
    while place + 7 <= len(data):
        if (left := 32768 - place % 32768) < 7:
            place += left
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        held += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record: Any = Record()
            record.ParseFromString(held)
            held = b""
            yield record


class Broken:
    def __init__(self, run: Followed, out: Path, epoch: int):
        self.epoch = epoch

    def log(self, values: Any, epoch: int) -> None:
        if epoch == 2:
            raise ConnectionError("no route\nto the server")

    def close(self, finished: bool) -> None:
        raise AssertionError("closed after it was left out")


def test_a_tracker_that_fails_is_left_out_and_named_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboard", reason="no tensorboard: pip install 'fashion-ntm[tensorboard]'")
    monkeypatch.setitem(TRACKERS, "tensorboard", Broken)
    said: list[str] = []
    trackers = Trackers(("tensorboard",), tmp_path, said.append)
    for epoch in (1, 2, 3):
        trackers.log(followed(RUNS[0]), EPOCH | {"epoch": epoch})
    trackers.close()
    (line,) = said
    assert line.startswith("tensorboard: no route; training continues") and "metrics.jsonl" in line
