"""Whole trainings: the fast path against the reference, and runs side by side against each run alone, in float64."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import pytest
import torch

from manifests.schema import Training
from pipeline.training.backends import choice
from pipeline.training.backends.choice import build_trainer, choose_backend
from pipeline.training.cascade import graph
from pipeline.training.data import SessionFeatures
from pipeline.training.determinism import RunRandom
from pipeline.training.errors import DivergenceError, TrainingError
from pipeline.training.fit import fit, fit_group
from pipeline.training.models import MemoryModel, build_model
from tests.pipeline.training.backends.recorder import replayed
from tests.pipeline.training.sessions import cumulative

OPTIONS = {"stages": 3, "slots": 4, "hidden": 8, "dropout": 0.2}
QUICK = Training(epochs=3, batch_size=16, learning_rate=1e-3)


def in_double(features: SessionFeatures) -> SessionFeatures:
    floats = {k: v.double() for k, v in vars(features).items() if isinstance(v, torch.Tensor) and v.is_floating_point()}
    return replace(features, **floats)


@pytest.fixture(scope="module")
def features() -> SessionFeatures:
    return in_double(cumulative(41, seed=1))


def built(seed: int = 0, name: str = "cm_ntm", dim: int = 6, **options: Any) -> MemoryModel:
    return build_model(name, OPTIONS | options if name == "cm_ntm" else options, dim, seed).double()


def apart(one: MemoryModel, other: MemoryModel) -> float:
    """The largest difference between two models' weights and buffers."""
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return max(float((value - expected).abs().max()) for value, expected in pairs)


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"clip_norm": 0.1, "weight_decay": 0.1, "scale": 20.0},
        {"padding": "mask", "ema": 0.5},
        {"drop_turns": 0.3, "uncertainty": 0.1, "negatives": "static"},
    ],
)
@pytest.mark.parametrize("backend", ["fast", pytest.param("numba", marks=pytest.mark.slow)])
def test_the_fast_path_trains_what_the_reference_trains(
    features: SessionFeatures, changed: dict[str, Any], backend: str
) -> None:
    training = QUICK.model_copy(update=changed)
    reference, fast = built(dim=features.dim), built(dim=features.dim)
    expected = [line["loss"] for line in fit(reference, features, training, 3)]
    found = [line["loss"] for line in fit(fast, features, training, 3, backend=backend)]
    assert found == pytest.approx(expected, abs=1e-10)
    assert apart(fast, reference) < 1e-9


@pytest.mark.parametrize("backend", ["reference", "fast", pytest.param("numba", marks=pytest.mark.slow)])
def test_runs_side_by_side_are_the_runs_alone(features: SessionFeatures, backend: str) -> None:
    trainings = [QUICK, QUICK.model_copy(update={"learning_rate": 1e-2, "clip_norm": 0.5}), QUICK]
    seeds = [0, 1, 2]
    together = [built(seed, dim=features.dim) for seed in seeds]
    lines = list(fit_group(together, features, trainings, seeds, backend=backend))
    assert len(lines) == QUICK.epochs
    for k, (seed, training) in enumerate(zip(seeds, trainings, strict=True)):
        alone = built(seed, dim=features.dim)
        expected = [line["loss"] for line in fit(alone, features, training, seed)]
        assert [line[k]["loss"] for line in lines] == pytest.approx(expected, abs=1e-10)
        assert apart(together[k], alone) < 1e-9


@pytest.mark.parametrize("options", [{"dropout": 0.3}, {"residual": "ewma", "stages": 1}])
def test_steps_that_are_replayed_are_those_of_each_run_alone(
    features: SessionFeatures, options: dict[str, Any], monkeypatch: Any
) -> None:
    """All of the graph's trainer but CUDA: what would be captured is recorded, and replayed for every other step. Dropout
    is drawn before each, and two batch sizes are two recordings."""

    monkeypatch.setattr(graph, "GraphTrainer", replayed(graph.GraphTrainer, monkeypatch))
    together = [built(seed, dim=features.dim, **options) for seed in (0, 1, 2)]
    list(fit_group(together, features, [QUICK] * 3, [0, 1, 2], backend="graph"))
    for seed, model in enumerate(together):
        alone = built(seed, dim=features.dim, **options)
        list(fit(alone, features, QUICK, seed, backend="reference"))
        assert apart(model, alone) < 1e-9


@pytest.mark.parametrize(
    ("changed", "options"),  # each value once: what a training changes and what a model changes are apart in the step
    [
        ({}, {}),
        ({"padding": "mask", "scale": 20.0}, {"stages": 1}),
        ({"clip_norm": 0.5, "weight_decay": 0.1}, {"init": "symmetry-breaking"}),
        ({"padding": "mask", "clip_norm": 0.5}, {"residual": "ewma"}),
    ],
)
def test_nothing_that_a_graph_captures_waits_for_the_device(
    features: SessionFeatures, changed: dict[str, Any], options: dict[str, Any], monkeypatch: Any
) -> None:
    """The whole step on the meta device, which has no values that a host could wait for: an ``item`` raises there."""
    monkeypatch.setattr(graph, "why_not", lambda *_: "")
    monkeypatch.setattr(graph.GraphTrainer, "capturable", False)
    models = [built(seed, dim=features.dim, **options) for seed in (0, 1)]
    trainer = graph.GraphTrainer(models, features, [QUICK.model_copy(update=changed)] * 2)
    for part in (*models, trainer.cascade):
        part.to("meta")
    for run, objective in enumerate(trainer.objectives):
        objective.features = features.to("meta")
        trainer._parts[run] = [p.detach()[run] for p in trainer.cascade.parameters() if p.requires_grad]
    trainer.optimizer = torch.optim.AdamW([part for parts in trainer._parts for part in parts], foreach=True)
    trainer._stacked = [p for p in trainer.cascade.parameters() if p.requires_grad]
    index = torch.zeros(2, 16, dtype=torch.int64, device="meta")
    kept = torch.ones(2, 16, features.turns, features.dim, dtype=torch.float64, device="meta")
    losses = trainer._whole_step(index, (kept,), [True, True])
    assert losses.is_meta and all(part.grad is not None for part in trainer._parts[1])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="a CUDA graph needs CUDA")
@pytest.mark.parametrize("backend", ["graph", "triton"])
def test_captured_runs_side_by_side_are_the_runs_alone(backend: str) -> None:
    features = in_double(cumulative(41, seed=1)).to("cuda")
    together = [built(seed, dim=features.dim).to("cuda") for seed in (0, 1, 2)]
    list(fit_group(together, features, [QUICK] * 3, [0, 1, 2], backend=backend))
    for seed, model in enumerate(together):
        for same in (backend, "reference"):
            alone = built(seed, dim=features.dim).to("cuda")
            list(fit(alone, features, QUICK, seed, backend=same))
            assert apart(model, alone) < 1e-9


@pytest.mark.slow
def test_each_run_stops_at_its_own_best_epoch(features: SessionFeatures) -> None:
    validation = in_double(cumulative(30, seed=2))
    training = Training(epochs=30, batch_size=16, learning_rate=3e-2, early_stopping=2)
    seeds = [0, 1]
    together = [built(seed, dim=features.dim) for seed in seeds]
    lines = list(fit_group(together, features, [training] * 2, seeds, validation, "fast"))
    ends = []
    for k, seed in enumerate(seeds):
        alone = built(seed, dim=features.dim)
        expected = list(fit(alone, features, training, seed, validation))
        own = [line[k] for line in lines if line[k] is not None]
        assert [line["validation"] for line in own] == [line["validation"] for line in expected]
        assert apart(together[k], alone) < 1e-7
        ends.append(len(own))
    assert max(ends) == len(lines)


def test_a_run_that_diverges_does_not_touch_the_others(features: SessionFeatures) -> None:
    models = [built(seed, dim=features.dim) for seed in (0, 1)]
    with torch.no_grad():
        models[0].output.bias[0] = torch.nan
    lines = list(fit_group(models, features, [QUICK, QUICK], [0, 1], backend="fast"))
    assert isinstance(lines[0][0], DivergenceError) and "epoch 1, step 1" in str(lines[0][0])
    assert all(line[0] is None for line in lines[1:]) and len(lines) == QUICK.epochs
    alone = built(1, dim=features.dim)
    list(fit(alone, features, QUICK, 1))
    assert apart(models[1], alone) < 1e-9


@pytest.mark.parametrize("backend", ["fast", pytest.param("reference", marks=pytest.mark.slow)])
def test_runs_with_the_same_settings_share_one_call_of_adam(features: SessionFeatures, backend: str) -> None:
    """On a GPU a call is a few launches. A run that has ended keeps its weights and its moments."""
    trainings = [QUICK, QUICK, QUICK.model_copy(update={"learning_rate": 1e-2}), QUICK]
    trainer = build_trainer(backend, [built(k, dim=features.dim) for k in range(4)], features, trainings)
    index, random = torch.arange(16).expand(4, -1), RunRandom([0] * 4, features.device)
    trainer.step(index, random, [True] * 4)
    before = [[t.clone() for t in (*trainer.tensors_of(k), *trainer.moments(k)[0].values())] for k in range(4)]
    with torch.profiler.profile() as profile:
        trainer.step(index, random, [True, False, True, True])
    assert [event.count for event in profile.key_averages() if event.key == "aten::_fused_adamw_"] == [2]
    for k, kept in enumerate(before):
        now = [*trainer.tensors_of(k), *trainer.moments(k)[0].values()]
        assert all(torch.equal(one, other) for one, other in zip(now, kept, strict=True)) == (k == 1)


def test_settings_that_must_be_common_are_checked(features: SessionFeatures) -> None:
    models = [built(seed, dim=features.dim) for seed in (0, 1)]
    other = QUICK.model_copy(update={"batch_size": 8})
    with pytest.raises(TrainingError, match=r"one training\.batch_size"):
        list(fit_group(models, features, [QUICK, other], [0, 1]))


def test_auto_takes_the_first_of_a_fixed_order(monkeypatch: Any) -> None:
    features = cumulative(41, seed=1)  # single precision, in which other tests compile the loops
    model, lstm = (built(name=name, dim=features.dim).float() for name in ("cm_ntm", "lstm"))
    assert choose_backend("auto", [model], features, [QUICK]) == choice.BackendChoice("numba")
    assert choice.able_backends([model], features, [QUICK]) == ["numba", "fast", "reference"]
    assert choose_backend("auto", [lstm], features, [QUICK]).backend == "reference"
    monkeypatch.setattr(choice, "_why_not", lambda *_: "")  # as on a GPU, with numba's loops beside it
    monkeypatch.setattr(choice, "measured_step", lambda *_: lambda: None)
    assert choose_backend("auto", [model], features, [QUICK]).backend == "triton"


@pytest.mark.parametrize(
    ("asked", "name", "reason"),
    [
        ("fast", "avg", "avg has no fast path"),
        ("numba", "lstm", "lstm has no fast path"),
        ("graph", "cm_ntm", "CUDA"),
        ("triton", "cm_ntm", "CUDA"),
    ],
)
def test_what_cannot_run_falls_back_with_one_line(asked: str, name: str, reason: str) -> None:
    features = cumulative(41, seed=1)  # single precision, as above
    if features.device.type == "cuda" and asked != "fast":
        pytest.skip("this machine can")
    found = choose_backend(asked, [built(name=name, dim=features.dim).float()], features, [QUICK])
    assert reason in found.fallback and found.fallback.endswith(f"using {found.backend}")
    assert "\n" not in found.fallback


@pytest.mark.parametrize("missing", ["numba", "the room for what it compiles"])
def test_without_compiled_loops_the_others_train(features: SessionFeatures, monkeypatch: Any, missing: str) -> None:
    """The package is an extra; and where it may write nowhere, importing the loops fails."""
    if missing == "numba":
        monkeypatch.setattr(choice, "find_spec", lambda name: None)
    else:
        monkeypatch.setitem(sys.modules, "pipeline.training.cascade.numba_loops", None)
    found = choose_backend("numba", [built(dim=features.dim)], features, [QUICK])
    assert found.backend in ("reference", "fast") and found.fallback.startswith("backend numba: ")


def test_a_backend_whose_step_fails_is_left_out_with_one_line(features: SessionFeatures, monkeypatch: Any) -> None:
    """As where a compiler or a driver is missing; who asked for it by name gets it."""

    def failing(models: Any, features: Any, trainings: Any, name: str = "reference") -> Any:
        def step() -> None:
            raise OSError("no compiler here\nlong trace")

        return step if name == "numba" else measured(models, features, trainings, name)

    measured = choice.measured_step
    monkeypatch.setattr(choice, "measured_step", failing)
    found = choose_backend("auto", [built(dim=features.dim)], features, [QUICK])
    line = "backend numba failed its first step (OSError: no compiler here); using fast"
    assert found == choice.BackendChoice("fast", line)
    assert choose_backend("numba", [built(dim=features.dim)], features, [QUICK]) == choice.BackendChoice("numba")


def test_unknown_backends_are_refused(features: SessionFeatures) -> None:
    with pytest.raises(TrainingError, match="unknown backend 'warp'"):
        choose_backend("warp", [built(dim=features.dim)], features, [QUICK])
    with pytest.raises(TrainingError, match="CUDA graphs need a CUDA device"):
        build_trainer("graph", [built(dim=features.dim)], features, [QUICK])


def test_faster_products_are_asked_for_by_name_and_given_back(features: SessionFeatures) -> None:
    """Medium may round products to bfloat16: near the exact training, and no setting of the process afterwards."""
    before, single = torch.get_float32_matmul_precision(), cumulative(41, seed=1)
    exact, rough = (build_model("cm_ntm", OPTIONS, single.dim, 0) for _ in range(2))
    expected = [line["loss"] for line in fit(exact, single, QUICK, 3, backend="fast")]
    training = QUICK.model_copy(update={"matmul": "medium"})
    assert [line["loss"] for line in fit(rough, single, training, 3, backend="fast")] == pytest.approx(
        expected, rel=2e-2
    )
    assert torch.get_float32_matmul_precision() == before
    assert "matmul" not in QUICK.model_dump() and training.model_dump()["matmul"] == "medium"
