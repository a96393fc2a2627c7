"""Exported graphs against the models: every memory model, any batch, turn by turn, as torch and as ONNX."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from cli import main
from pipeline.composition.composers.gated import Gated, GatedOptions
from pipeline.export.run import ExportError, export_run
from pipeline.export.steps import Graph, as_tuple, graphs_of, step_of
from pipeline.training.models import build_model, models
from pipeline.training.runs import RunFolder
from tests.pipeline.training.test_models import OPTIONS, settle

D = 6


def built(name: str, **options: Any) -> Any:
    return settle(build_model(name, OPTIONS.get(name, {}) | options, D)).float().eval()


STEPS = ("avg", "cm_ntm", "dialog_manager", "ewma", "gru", "last", "lstm", "no_memory", "turn_weights", "v_ntm")
RESIDUAL: list[tuple[str, dict[str, Any]]] = [
    *[(name, {"residual": kind}) for name in ("lstm", "gru", "no_memory") for kind in (True, "ewma")],
    *[(name, {"texts": D}) for name in ("lstm", "gru", "turn_weights")],
    *[("cm_ntm", {"stages": 1, "residual": True}), ("cm_ntm", {"residual": "ewma"})],
]


@pytest.mark.parametrize(("name", "options"), [(name, {}) for name in STEPS] + RESIDUAL)
@torch.no_grad()
def test_steps_equal_the_models_turn_by_turn(name: str, options: dict[str, Any]) -> None:
    model = built(name, **options)
    if options.get("residual") == "ewma":
        model.residual.alpha.fill_(0.6)
    graph = step_of(model)
    assert isinstance(graph, Graph)
    queries, state, expected = torch.randn(4, 20, D + model.texts), model.initial_state(4), []
    given = [
        value[:1].expand(4, *value.shape[1:])
        for value in list(graph.inputs.values())[2 if len(graph.inputs) > 1 else 1 :]
    ]
    for turn in range(20):  # beyond the turns with statistics of their own
        output, state = model.step(queries[:, turn], state)
        expected.append(output)
        inputs = [queries[:, turn], torch.tensor(turn), *given] if len(graph.inputs) > 1 else [queries[:, turn]]
        found, *given = as_tuple(graph.module(*inputs))
        torch.testing.assert_close(found, output, rtol=1e-4, atol=1e-5)


def test_every_model_has_a_step_or_the_reason_why_not() -> None:
    for name in models.names():
        graphs, step = [graph.name for graph in graphs_of(built(name), None, 4)], step_of(built(name))
        assert graphs[0] == "session" and ("step" in graphs) == (name in STEPS) == isinstance(step, Graph)
        assert name in STEPS or name in str(step)


def finished(folder: Path, name: str, **options: Any) -> RunFolder:
    run = RunFolder(folder / "data" / name / "0123456789ab")
    with run.training({"id": run.id, "identity": {"store": "s"}}) as held:
        held.save_model(built(name, **options))
        held.finish({"epochs": 1})
    return run


QUICK = ("cfir",)  # the others are traced, which takes seconds each; ``last`` by the command, below


@pytest.mark.parametrize(
    "name",
    [
        *QUICK,
        *(pytest.param(n, marks=pytest.mark.slow) for n in models.names() if n not in (*QUICK, "cm_ntm", "v_ntm")),
    ],
)
def test_other_models_are_exported_or_refused_by_name(name: str, tmp_path: Path) -> None:
    run = finished(tmp_path, name)
    if name == "cfir":
        with pytest.raises(ExportError, match="cfir scores each candidate"):
            export_run(run, None, tmp_path / "to", "torch")
        assert not (tmp_path / "to").exists()
        return
    done = export_run(run, None, tmp_path / "to", "torch", turns=3)
    assert (tmp_path / "to" / "step.pt2").is_file() == (name in STEPS) == ("no step graph" not in done.text())
    assert done.about["ranking"] == ("minus the squared distance" if name == "dialog_manager" else "cosine")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lstm", "dialog_manager", "transformer"])
def test_other_models_as_onnx(name: str, tmp_path: Path) -> None:
    """A recurrent state, another ranking, no step; the others are traced as those, and exported for torch above."""
    for package in ("onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason=f"no {package}: pip install 'fashion-ntm[onnx]'")
    done = export_run(finished(tmp_path, name), None, tmp_path / "to", "onnx", turns=2)
    assert all(graph["difference"] < 1e-4 for graph in done.about["graphs"])


@pytest.mark.parametrize(
    ("form", "stages"), [pytest.param(*case, marks=pytest.mark.slow) for case in (("torch", 2), ("onnx", 1))]
)
def test_the_files_answer_as_the_model(form: Any, stages: int, tmp_path: Path) -> None:
    run = finished(tmp_path, "cm_ntm", stages=stages)
    if form == "onnx":
        pytest.importorskip("onnxscript", reason="no onnxscript: pip install 'fashion-ntm[onnx]'")
        onnxruntime = pytest.importorskip("onnxruntime", reason="no onnxruntime: pip install 'fashion-ntm[onnx]'")
    composer = Gated(GatedOptions(hidden=5), D, D).eval()
    done = export_run(run, composer, tmp_path / "to", form, turns=stages)
    about = json.loads((tmp_path / "to" / "export.json").read_text())
    assert [graph["name"] for graph in about["graphs"]] == ["session", "step", "query", "target"]
    assert about == done.about and all(graph["difference"] < 1e-4 for graph in about["graphs"])
    state = np.load(tmp_path / "to" / "state.npz")
    assert np.array_equal(
        state["stage1.memory"], built("cm_ntm", stages=stages).initial_state(1).stages[0].memory.detach().numpy()
    )
    image, text = torch.randn(5, D), torch.randn(5, D)
    with torch.no_grad():
        wanted = composer.query(image, text).numpy()
    if form == "onnx":
        session = onnxruntime.InferenceSession(str(tmp_path / "to" / "query.onnx"))
        (found,) = session.run(None, {"image": image.numpy(), "text": text.numpy()})
    else:
        found = torch.export.load(tmp_path / "to" / "query.pt2").module()(image, text).detach().numpy()
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    with pytest.raises(ExportError, match="not an empty folder"):
        export_run(run, None, tmp_path / "to", form)


def test_the_command_names_a_missing_run(tmp_path: Path) -> None:
    words = ["export", "ffff", "--to", str(tmp_path / "to"), "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 4 and "no run 'ffff'" in done.output


@pytest.mark.slow
def test_the_command_says_that_the_composer_is_left_out(tmp_path: Path) -> None:
    run = finished(tmp_path, "last")
    done = CliRunner().invoke(main, ["export", str(run.path), "--to", str(tmp_path / "to"), "--turns", "2"])
    assert done.exit_code == 0 and "the composer is left out" in done.output and "session.pt2" in done.output
