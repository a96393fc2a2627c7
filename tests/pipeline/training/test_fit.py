"""Training: reproducible, without side effects, and it learns what needs a memory."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from manifests.schema import Training
from pipeline.training.backends.choice import measured_step
from pipeline.training.data import SessionFeatures
from pipeline.training.determinism import derive_seed, flushed_denormals, seeded
from pipeline.training.errors import DivergenceError, TrainingError
from pipeline.training.fit import epoch_batches, fit
from pipeline.training.models import MemoryModel, build_model
from pipeline.training.validate import embed, recalls
from tests.pipeline.training.sessions import cumulative

SMALL: dict[str, dict[str, Any]] = {
    "lstm": {"hidden": 8, "dropout": 0.2},
    "cm_ntm": {"stages": 2, "hidden": 8, "dropout": 0.2},
}
QUICK = Training(epochs=2, batch_size=16, learning_rate=1e-3)


@pytest.fixture(scope="module")
def features() -> SessionFeatures:
    return cumulative(41, seed=1)


def trained(
    name: str, features: SessionFeatures, training: Training = QUICK, seed: int = 0
) -> tuple[MemoryModel, list]:
    model = build_model(name, SMALL[name], features.dim, seed)
    return model, list(fit(model, features, training, seed))


@pytest.mark.parametrize("name", SMALL)
def test_same_seed_same_numbers_whatever_happens_between_epochs(name: str, features: SessionFeatures) -> None:
    one, metrics = trained(name, features)
    other = build_model(name, SMALL[name], features.dim, 0)
    again = []
    for line in fit(other, features, QUICK, 0):
        again.append(line)
        torch.manual_seed(len(again))  # what a caller does with the global generator
        torch.rand(3)
    for key, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[key]), key
    assert [m["loss"] for m in metrics] == [m["loss"] for m in again]
    third, _ = trained(name, features, seed=1)
    assert any(not torch.equal(a, b) for a, b in zip(one.parameters(), third.parameters(), strict=True))


def test_training_leaves_the_process_as_it_was(features: SessionFeatures) -> None:
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    subnormal = torch.tensor([1e-40])
    trained("cm_ntm", features)
    assert torch.equal(torch.get_rng_state(), state) and torch.get_num_threads() == threads
    assert subnormal.mul(1.0).item() > 0
    with flushed_denormals():
        assert subnormal.mul(1.0).item() == 0


def test_seeds_differ_by_purpose_and_are_portable() -> None:
    assert derive_seed(0, "init") == 1519069808562059438
    assert len({derive_seed(s, "epoch", e) for s in range(5) for e in range(50)}) == 250


def test_the_loss_falls_from_that_of_a_guess(features: SessionFeatures) -> None:
    _, metrics = trained("cm_ntm", features, Training(epochs=8, batch_size=16, learning_rate=5e-3))
    losses = [m["loss"] for m in metrics]
    assert [m["epoch"] for m in metrics] == list(range(1, 9)) and losses[-1] < losses[0]
    assert all(m["seconds"] > 0 for m in metrics) and losses[0] == pytest.approx(math.log(16), rel=0.3)


@pytest.mark.parametrize(
    ("name", "options", "rate"),
    [("lstm", {"hidden": 32}, 1e-2), ("v_ntm", {"hidden": 32}, 5e-3), ("cm_ntm", {"stages": 2, "hidden": 32}, 5e-3)],
)
def test_learns_a_task_that_the_last_turn_alone_cannot_solve(name: str, options: dict[str, Any], rate: float) -> None:
    train, unseen = cumulative(400, seed=1), cumulative(200, seed=2)
    model = build_model(name, options, train.dim, seed=0)
    for _ in fit(model, train, Training(epochs=8, learning_rate=rate, scale=10.0, batch_size=40)):
        pass
    without_memory = recalls(build_model("last", {}, train.dim), unseen)["mean"]
    assert recalls(model, unseen)["mean"] > 90 > 50 > without_memory


def test_masked_padding_trains_too_and_differs(features: SessionFeatures) -> None:
    repeated, _ = trained("cm_ntm", features)
    masked, metrics = trained("cm_ntm", features, QUICK.model_copy(update={"padding": "mask"}))
    assert math.isfinite(metrics[-1]["loss"])
    assert not torch.equal(repeated.output.bias, masked.output.bias)


def test_every_session_is_visited_once_and_a_last_one_alone_is_left_out() -> None:
    for sessions, expected in ((10, [4, 4, 2]), (9, [4, 4]), (8, [4, 4])):
        with seeded(0):
            batches = epoch_batches(torch.randperm(sessions), 4)
        assert [len(b) for b in batches] == expected
        seen = torch.cat(batches).tolist()
        assert len(set(seen)) == len(seen) == sum(expected)
    assert len(epoch_batches(torch.arange(2), 80)) == 1


def test_a_validation_part_is_measured_each_epoch(features: SessionFeatures) -> None:
    model = build_model("lstm", SMALL["lstm"], features.dim)
    metrics = list(fit(model, features, QUICK, 0, cumulative(30, seed=2)))
    assert all(set(m["validation"]) == {"R@5", "R@8", "mean"} for m in metrics)
    unwatched, _ = trained("lstm", features)
    assert torch.equal(model.output.weight, unwatched.output.weight)  # looking changes nothing


def test_early_stopping_restores_the_best_epoch(features: SessionFeatures) -> None:
    validation = cumulative(60, seed=2)
    model = build_model("lstm", SMALL["lstm"], features.dim)
    training = Training(epochs=60, batch_size=16, learning_rate=3e-2, early_stopping=2)
    metrics = list(fit(model, features, training, 0, validation))
    scores = [m["validation"]["mean"] for m in metrics]
    best = metrics[-1]["best"]
    assert len(metrics) < 60 and len(metrics) == best + 2 and scores[best - 1] == max(scores)
    assert recalls(model, validation)["mean"] == scores[best - 1]


def test_early_stopping_without_validation_is_refused(features: SessionFeatures) -> None:
    with pytest.raises(TrainingError, match=r"early_stopping = 3 needs a validation part.*validation.fraction"):
        trained("lstm", features, Training(early_stopping=3))


def test_one_session_cannot_be_trained_on(features: SessionFeatures) -> None:
    with pytest.raises(TrainingError, match="1 session"):
        trained("lstm", features.subset([0]))


def test_divergence_names_epoch_and_step_and_spares_the_weights(features: SessionFeatures) -> None:
    model = build_model("lstm", {"hidden": 8}, features.dim)
    lines = []
    with pytest.raises(
        DivergenceError, match=r"lstm: the loss is nan at epoch 2, step 1 of 3.*learning_rate \(now 0.001\)"
    ):
        for line in fit(model, features, QUICK):
            lines.append(line)
            features_before = [p.clone() for p in model.parameters()]
            with torch.no_grad():
                model.output.bias[0] = torch.nan
    assert len(lines) == 1
    for before, now in list(zip(features_before, model.parameters(), strict=True))[:-1]:
        assert torch.equal(before, now)


def test_clipping_bounds_the_step(features: SessionFeatures) -> None:
    clipped, _ = trained("lstm", features, QUICK.model_copy(update={"clip_norm": 1e-9}))
    free, _ = trained("lstm", features)
    start = build_model("lstm", SMALL["lstm"], features.dim, 0)
    moved = [
        sum((a - b).abs().sum() for a, b in zip(m.parameters(), start.parameters(), strict=True))
        for m in (clipped, free)
    ]
    assert moved[0] < moved[1]


def test_ewma_chooses_alpha_on_the_sessions_it_is_given(features: SessionFeatures) -> None:
    model = build_model("ewma", {}, features.dim)
    with pytest.raises(TrainingError, match="alpha is not chosen"):
        embed(model, features)
    (line,) = fit(model, features, QUICK)
    chosen = line["chosen"]
    assert line["epoch"] == 0 and chosen["alpha"] == pytest.approx(float(model.alpha))
    best = max(chosen["grid"].values())
    assert chosen["grid"][f"{chosen['alpha']:.2f}"] == best
    assert chosen["alpha"] == max(float(a) for a, score in chosen["grid"].items() if score == best)
    fixed = build_model("ewma", {"alpha": 0.25}, features.dim)
    assert next(fit(fixed, features, QUICK))["chosen"] == {"alpha": 0.25}


def test_embedding_takes_the_last_real_turn_in_any_batch_size(features: SessionFeatures) -> None:
    model = build_model("cm_ntm", SMALL["cm_ntm"], features.dim).train()
    whole = embed(model, features)
    assert whole.shape == (len(features), features.dim) and model.training and not whole.requires_grad
    torch.testing.assert_close(embed(model, features, batch=7), whole)
    queries, _, lengths = features.batch(torch.tensor([5]))
    torch.testing.assert_close(model.eval()(queries, lengths)[0, lengths[0] - 1], whole[5])
    last = embed(build_model("last", {}, features.dim), features)
    assert torch.equal(last, features.queries[features.query_rows[:, -1]])
    concatenated = embed(build_model("cat", {}, features.dim), features)
    assert torch.equal(concatenated, features.queries[features.cat_rows])


def test_validation_ranks_within_a_category() -> None:
    features = cumulative(60, seed=3)
    named = [s.model_copy(update={"category": "a" if n < 20 else "b"}) for n, s in enumerate(features.sessions)]
    perfect = build_model("avg", {}, features.dim)
    assert recalls(perfect, replace(features, sessions=tuple(named)))["R@5"] == 100.0
    last = build_model("last", {}, features.dim)
    assert recalls(last, replace(features, sessions=tuple(named)))["R@5"] > recalls(last, features)["R@5"]


def test_the_measured_step_is_on_a_copy(features: SessionFeatures) -> None:
    model = build_model("lstm", SMALL["lstm"], features.dim)
    before = model.output.weight.clone()
    measured_step([model], features, [QUICK])()
    assert torch.equal(model.output.weight, before)
    measured_step([build_model("avg", {}, features.dim)], features, [QUICK])()
