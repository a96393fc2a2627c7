"""The diagnostics' figure and its command, on records of a real training."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from cli import main
from manifests.schema import Training
from pipeline.analysis.diagnostics_figure import BROKEN, broken_at, draw_diagnostics, spread_by_epoch
from pipeline.analysis.drawing import DrawingError
from pipeline.training.diagnostics import diagnose
from pipeline.training.fit import fit
from pipeline.training.models import build_model
from pipeline.training.runs import DIAGNOSTICS, RunFolder
from tests.pipeline.training.sessions import cumulative


def records(init: str) -> list[dict[str, Any]]:
    features, index, training = cumulative(16), torch.arange(8), Training(epochs=2, batch_size=8)
    model = build_model("cm_ntm", {"stages": 2, "hidden": 4, "init": init}, features.dim)
    found = [{"epoch": 0, **diagnose(model, features, index, training)}]
    for metrics in fit(model, features, training):
        found.append({"epoch": metrics["epoch"], **diagnose(model, features, index, training)})
    return found


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output folder with two diagnosed runs, 1a... and 1b..., and one without diagnostics, 2c..."""
    folder = tmp_path_factory.mktemp("out")
    for run, init in (("1a" * 6, "paper"), ("1b" * 6, "symmetry-breaking"), ("2c" * 6, "")):
        target = RunFolder.of(folder / "runs", "toy", "cm_ntm", run)
        with target.training({"identity": {"seed": 3, "model": {"options": {"init": init}}}}) as held:
            for record in records(init) if init else []:
                held.append(record, DIAGNOSTICS)
            held.finish({"epochs": 2})
    return folder


def test_the_symmetry_breaks_where_the_spread_reaches_the_threshold() -> None:
    def record(epoch: int, *read_last: float) -> dict[str, Any]:
        return {"epoch": epoch, "row_spread": [[0.0, 0.9, value, 0.9] for value in read_last]}

    given = [record(0, 1e-7, 0.5, 0.0), record(2, BROKEN, 0.5, 0.0), record(4, 0.001, 0.5, BROKEN / 2)]
    assert spread_by_epoch(given) == [[1e-7, BROKEN, 0.001], [0.5, 0.5, 0.5], [0.0, 0.0, BROKEN / 2]]
    assert broken_at(given) == [2, 0, None]


@pytest.mark.slow
def test_records_of_both_initialisations_draw(out: Path, tmp_path: Path) -> None:
    paper, broken = (RunFolder.of(out / "runs", "toy", "cm_ntm", run * 6).diagnoses() for run in ("1a", "1b"))
    assert broken_at(broken)[0] == 0 and broken_at(paper)[0] != 0
    files = [tmp_path / "new" / f"rows{suffix}" for suffix in (".svg", ".pdf")]
    draw_diagnostics([("paper", paper), ("broken", broken)], files)
    assert files[1].read_bytes().startswith(b"%PDF")
    svg = files[0].read_text(encoding="utf-8")
    for text in ("row spread", "entropy", "gradient norm", "stage 2", "epoch", "broken", "read", "write"):
        assert text in svg
    draw_diagnostics([("paper", paper), ("broken", broken)], files[:1])
    assert files[0].read_text(encoding="utf-8") == svg


def test_what_cannot_be_drawn_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(DrawingError, match=r"needs matplotlib.*fashion-ntm\[plots\]"):
        draw_diagnostics([("run", records("paper"))], [tmp_path / "x.png"])


def run(out: Path, *words: str) -> Any:
    return CliRunner().invoke(main, ["figure", "diagnostics", *words, "--out", str(out)])


def test_the_command_draws_runs_by_id_beginning_or_folder(out: Path, tmp_path: Path) -> None:
    folder = out / "runs" / "toy" / "cm_ntm" / ("1b" * 6)
    result = run(out, "--run", "1a" * 6, "--run", str(folder), "--file", str(tmp_path / "rows.png"))
    assert result.exit_code == 0, result.output
    assert (tmp_path / "rows.png").read_bytes().startswith(b"\x89PNG") and "rows.png" in result.stdout
    assert (
        f"cm_ntm {'1b' * 6}: the symmetry between rows is broken from stage 1: epoch 0, stage 2: epoch 0"
        in result.stdout
    )
    assert (
        run(out, "--run", "1b").exit_code == 0
        and (folder / "diagnostics.svg").is_file()
        and (folder / "diagnostics.png").is_file()
    )


def test_the_commands_errors_say_what_to_do(out: Path) -> None:
    for words, code, message in (
        (["--run", "2c"], 3, "has no diagnostics: train it with --diagnostics --force"),
        (["--run", "1"], 4, "2 runs begin with '1'"),
        (["--run", "1a1a1a1a1a1c"], 4, "did you mean '1a1a1a1a1a1a'"),
        (["--run", "1a", "--file", "rows.gif"], 1, "unknown kind of picture '.gif'"),
        ([], 2, "needs a run: --run ID"),
    ):
        result = run(out, *words)
        assert result.exit_code == code and message in result.output, (words, result.output)


def test_training_anew_removes_an_earlier_diagnosis(out: Path) -> None:
    folder = RunFolder.of(out / "runs", "toy", "cm_ntm", "9f" * 6)
    with folder.training({}) as held:
        held.append({"epoch": 0}, DIAGNOSTICS)
    assert folder.diagnoses() == [{"epoch": 0}]
    with folder.training({}):
        assert folder.diagnoses() == []
