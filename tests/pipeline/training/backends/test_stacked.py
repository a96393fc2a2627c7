"""Models side by side as one stacked module: each run's numbers are those that it has alone, in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from manifests.schema import Training
from pipeline.training.backends import choice, stacked
from pipeline.training.backends.choice import choose_backend
from pipeline.training.cascade import graph
from pipeline.training.determinism import RunRandom
from pipeline.training.fit import fit, fit_group
from tests.pipeline.training.backends.recorder import replayed
from tests.pipeline.training.backends.test_trainers import apart, built, in_double
from tests.pipeline.training.sessions import cumulative

QUICK = Training(epochs=2, batch_size=16, learning_rate=1e-2)
SEEDS = [0, 1, 2]
MODELS = [
    ("lstm", {"hidden": 5, "dropout": 0.3, "residual": "ewma"}),
    ("gru", {"hidden": 5, "dropout": 0.3, "residual": True}),
    ("transformer", {"width": 8, "heads": 2, "dropout": 0.2}),
    ("no_memory", {"hidden": 5, "dropout": 0.3}),
    ("turn_weights", {"hidden": 6, "dropout": 0.3}),
    ("cfir", {"width": 6, "fields": 3, "dropout": 0.2}),
    ("dialog_manager", {"width": 6, "gallery": 128, "dropout": 0.2}),  # two epochs: pre-training, then improvement
    ("dialog_manager", {"width": 6, "gallery": 12, "pretraining": 0.0}),  # fewer slots than targets in a batch
    ("v_ntm", {"hidden": 5, "dropout": 0.2}),
]
NAMES = [f"{name}{'-' + str(o['gallery']) if 'gallery' in o else ''}" for name, o in MODELS]
FEATURES = in_double(cumulative(41, seed=1))  # 41 sessions: two batches of 16 and one of 9


def of(name: str, seed: int, options: dict[str, Any]) -> Any:
    return built(seed, name, FEATURES.dim, **options)


def alone(name: str, options: dict[str, Any], training: Training, seed: int) -> tuple[Any, list[float]]:
    model = of(name, seed, options)
    return model, [line["loss"] for line in fit(model, FEATURES, training, seed)]


@pytest.mark.parametrize("number", range(len(MODELS)), ids=NAMES)
def test_stacked_runs_are_the_runs_alone(number: int) -> None:
    """Every other model with other settings of the training, which know nothing of the model."""
    name, options = MODELS[number]
    changed = {"clip_norm": 0.1, "ema": 0.5, "drop_turns": 0.3, "padding": "mask"} if number % 2 else {}
    training = QUICK.model_copy(update=changed)
    trainings = [training, training.model_copy(update={"learning_rate": 3e-2}), training]
    together = [of(name, seed, options) for seed in SEEDS]
    lines = list(fit_group(together, FEATURES, trainings, SEEDS, backend="fast"))
    for seed, model in enumerate(together):
        expected, losses = alone(name, options, trainings[seed], seed)
        assert [line[seed]["loss"] for line in lines] == pytest.approx(losses, abs=1e-10)
        assert apart(model, expected) < 1e-9


@pytest.mark.parametrize(("name", "options"), MODELS[:-1], ids=NAMES[:-1])
def test_replayed_steps_are_those_of_each_run_alone(name: str, options: dict[str, Any], monkeypatch: Any) -> None:
    """All of the graph's trainer but CUDA: the operators of a step are recorded, and done again for every other step."""

    trainer = replayed(stacked.StackedGraphTrainer, monkeypatch)
    monkeypatch.setattr(stacked, "StackedGraphTrainer", trainer)
    together = [of(name, seed, options) for seed in SEEDS]
    list(fit_group(together, FEATURES, [QUICK] * 3, SEEDS, backend="graph"))
    for seed, model in enumerate(together):
        assert apart(model, alone(name, options, QUICK, seed)[0]) < 1e-9


@pytest.mark.parametrize(("name", "options"), MODELS[:-1], ids=NAMES[:-1])
def test_nothing_in_a_replayed_step_waits_for_the_device(name: str, options: dict[str, Any], monkeypatch: Any) -> None:
    """The whole step on the meta device, which has no values that a host could wait for: an ``item`` raises there."""
    monkeypatch.setattr(graph, "why_not", lambda *_: "")
    monkeypatch.setattr(graph.GraphTrainer, "capturable", False)
    trainer = stacked.StackedGraphTrainer([of(name, seed, options) for seed in SEEDS], FEATURES, [QUICK] * 3)
    index = torch.arange(16).expand(3, -1)
    phases = {p: trainer._draw(index, RunRandom(SEEDS, FEATURES.device), p) for p in (0.5, 1.0)}
    for part in (*trainer.models, trainer.cascade, *trainer.cascade._call):
        part.to("meta")
    for run, objective in enumerate(trainer.objectives):
        objective.features = FEATURES.to("meta")
        trainer._parts[run] = [p.detach()[run] for p in trainer.cascade.parameters()]
    trainer.optimizer = torch.optim.AdamW([part for parts in trainer._parts for part in parts], foreach=True)
    trainer._stacked = list(trainer.cascade.parameters())
    for progress, drawn in phases.items():
        drawn = tuple(numbers.to("meta") for numbers in drawn)
        assert trainer._whole_step(index.to("meta"), drawn, [True] * 3, progress).is_meta


@pytest.mark.skipif(not torch.cuda.is_available(), reason="a CUDA graph needs CUDA")
@pytest.mark.parametrize(("name", "options"), MODELS, ids=NAMES)
def test_captured_runs_are_the_runs_alone(name: str, options: dict[str, Any]) -> None:
    features, found = FEATURES.to("cuda"), {}
    for backend in ("graph", "reference"):
        found[backend] = [of(name, seed, options).to("cuda") for seed in SEEDS]
        list(fit_group(found[backend], features, [QUICK] * 3, SEEDS, backend=backend))
    for one, other in zip(found["graph"], found["reference"], strict=True):
        assert apart(one, other) < 1e-9


def test_what_is_stacked_is_chosen_where_it_pays(monkeypatch: Any) -> None:
    """On a CPU by name alone; a model with losses of changing sizes, or one that only inherits, not at all."""
    models = [of("lstm", 0, {})]
    assert choice.able_backends(models, FEATURES, [QUICK]) == ["fast", "reference"]
    assert choose_backend("auto", models, FEATURES, [QUICK]).backend == "reference"
    assert choose_backend("fast", models, FEATURES, [QUICK]).backend == "fast"
    child = of("lstm", 0, {})
    child.__class__ = type("Child", (type(child),), {})
    assert stacked.why_not([child])
