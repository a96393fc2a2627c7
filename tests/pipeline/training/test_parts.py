"""Each training part alone: off it changes nothing, on it does what it says."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from manifests.errors import ManifestError
from manifests.schema import Component, Training
from pipeline.training import objective as objective_module
from pipeline.training.average import WeightAverage
from pipeline.training.data import SessionFeatures
from pipeline.training.fit import fit
from pipeline.training.losses import build_loss, losses
from pipeline.training.models import build_model
from pipeline.training.objective import Objective, jittered, kept_turns
from pipeline.training.sampling import HardGroups
from tests.pipeline.training.sessions import cumulative

BASE: dict[str, Any] = {"epochs": 2, "batch_size": 16, "learning_rate": 1e-3}


@pytest.fixture(scope="module")
def features() -> SessionFeatures:
    return cumulative(41, seed=1)


def value(features: SessionFeatures, **parts: Any) -> torch.Tensor:
    torch.manual_seed(0)
    objective = Objective(features, Training(**BASE, scale=5.0, **parts))
    return objective(build_model("lstm", {"hidden": 8}, features.dim), torch.arange(12))


def test_a_part_that_is_off_leaves_the_identity_of_a_run_as_it_was() -> None:
    assert set(Training().model_dump()) == {
        "epochs",
        "batch_size",
        "learning_rate",
        "weight_decay",
        "scale",
        "padding",
        "clip_norm",
        "early_stopping",
    }
    on = Training(loss="multi_similarity", ema=0.9, negatives="static")
    assert on.model_dump(mode="json")["loss"] == {"name": "multi_similarity"}
    assert Training.model_validate(on.model_dump()) == on


def test_unknown_losses_and_options_name_the_nearest() -> None:
    with pytest.raises(ManifestError, match=r"unknown loss 'multi-similarity'.*'multi_similarity'"):
        build_loss(Component(name="multi-similarity"))
    with pytest.raises(ManifestError, match=r"training.loss.bta: unknown key .*'beta'"):
        build_loss(Component(name="multi_similarity", bta=3))


@pytest.mark.parametrize("name", losses.names())
def test_contract_of_a_loss(name: str) -> None:
    loss = build_loss(Component(name=name))
    scores = torch.linspace(-0.9, 0.9, 15).view(3, 5).contiguous().requires_grad_()
    own = torch.tensor([4, 0, 2])
    found = loss(scores, own, None, 7.0)
    assert loss.title and found.shape == (3,) and (found >= 0).all()
    for row in range(3):  # a query's loss depends on its own scores alone
        torch.testing.assert_close(loss(scores[row : row + 1], own[row : row + 1], None, 7.0), found[row : row + 1])
    found.sum().backward()
    assert torch.isfinite(scores.grad).all() and (scores.grad.gather(1, own[:, None]) <= 0).all()
    nothing = torch.zeros(3, 5, dtype=torch.bool)
    alone = loss(scores.detach().requires_grad_(), own, nothing, 7.0)
    torch.testing.assert_close(alone, torch.zeros(3), atol=1e-6, rtol=0)  # no negative: nothing to lose against


def test_multi_similarity_by_hand() -> None:
    loss = build_loss(Component(name="multi_similarity", alpha=2.0, beta=10.0, base=0.5, margin=0.1))
    scores = torch.tensor([[0.6, 0.55, 0.4, 0.7]])  # 0.4 is more than the margin below the target: not mined
    push = math.log(1 + math.exp(10 * 0.05) + math.exp(10 * 0.2)) / 10
    expected = math.log(1 + math.exp(-2 * 0.1)) / 2 + push
    assert loss(scores, torch.tensor([0]), None, 1.0).item() == pytest.approx(expected, rel=1e-6)
    assert loss(scores - torch.tensor([[0.0, 1.0, 1.0, 1.0]]), torch.tensor([0]), None, 1.0).item() == 0.0


def test_static_negatives_are_all_cached_train_targets(features: SessionFeatures) -> None:
    model = build_model("lstm", {"hidden": 8}, features.dim, seed=0)
    queries, _, lengths = features.batch(torch.arange(12))
    logits = 5 * F.normalize(model(queries, lengths), dim=-1) @ F.normalize(features.targets, dim=-1).T
    rows = features.target_rows[:12]
    expected = F.cross_entropy(logits.flatten(0, 1), rows.flatten())
    torch.testing.assert_close(value(features, negatives="static"), expected)


def test_static_negatives_are_bounded_in_memory_and_the_bound_changes_no_gradient(
    features: SessionFeatures, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gradients() -> list[torch.Tensor]:
        model = build_model("lstm", {"hidden": 8}, features.dim, seed=0)
        Objective(features, Training(**BASE, negatives="static"))(model, torch.arange(12)).backward()
        return [p.grad for p in model.parameters()]

    whole = gradients()
    held: list[int] = []
    matmul = torch.Tensor.__matmul__
    monkeypatch.setattr(objective_module, "SCORES_HELD", 3 * len(features.targets))
    monkeypatch.setattr(
        torch.Tensor, "__matmul__", lambda a, b: held.append((out := matmul(a, b)).numel()) or out, raising=True
    )
    blocked = gradients()
    assert max(held) <= 3 * len(features.targets) and len(held) >= 12 * features.turns // 3
    for a, b in zip(whole, blocked, strict=True):
        torch.testing.assert_close(a, b)


def test_category_negatives_leave_other_categories_out(features: SessionFeatures) -> None:
    named = [s.model_copy(update={"category": "ab"[n % 2]}) for n, s in enumerate(features.sessions)]
    two = replace(features, sessions=tuple(named))
    model = build_model("lstm", {"hidden": 8}, two.dim, seed=0)
    index = torch.arange(12)
    queries, _, lengths = two.batch(index)
    logits = 5 * F.normalize(model(queries, lengths), dim=-1) @ F.normalize(two.targets, dim=-1).T
    expected = []
    for n in range(two.turns):
        for s in range(12):
            row = two.target_rows[s, n]
            homes = {named[i].category for i in range(len(two)) if row in two.target_rows[i]}
            allowed = sorted(
                {int(r) for i in range(len(two)) if named[i].category in homes for r in two.target_rows[i]}
            )
            expected.append(F.cross_entropy(logits[s, n, allowed], torch.tensor(allowed.index(int(row)))))
    torch.testing.assert_close(value(two, negatives="category"), torch.stack(expected).mean())


def test_the_same_target_can_be_ignored_as_a_negative(features: SessionFeatures) -> None:
    model = build_model("lstm", {"hidden": 8}, features.dim, seed=0)
    queries, targets, lengths = features.batch(torch.arange(12))
    expected = []
    predicted, wanted = F.normalize(model(queries, lengths), dim=-1), F.normalize(targets, dim=-1)
    for n in range(features.turns):
        rows = features.target_rows[:12, n]
        scores = 5 * predicted[:, n] @ wanted[:, n].T
        same = (rows[:, None] == rows) & ~torch.eye(12, dtype=torch.bool)
        expected.append(F.cross_entropy(scores.masked_fill(same, -torch.inf), torch.arange(12)))
        assert same.any() or n  # at the first turn eight things stand behind twelve sessions
    torch.testing.assert_close(value(features, same_target="ignore"), torch.stack(expected).mean())


def test_uncertainty_mixes_in_the_augmented_loss_and_less_of_it_late(features: SessionFeatures) -> None:
    torch.manual_seed(1)
    targets = torch.randn(4000, 3) * torch.tensor([1.0, 2.0, 0.0]) + torch.tensor([0.0, 5.0, 4.0])
    torch.manual_seed(0)
    noise = jittered(targets, 0.1) - targets
    assert noise.mean(0).abs().max() < 0.05
    size = torch.stack([targets.square().mean(0) * 0.01 + targets.var(0) * 0.01]).sqrt()[0]
    torch.testing.assert_close(noise.std(0), size, rtol=0.05, atol=0)
    plain = value(features)
    tiny = value(features, uncertainty=1e-9)
    torch.testing.assert_close(tiny, plain)
    objective = Objective(features, Training(**BASE, uncertainty=3.0))
    model = build_model("lstm", {"hidden": 8}, features.dim, seed=0)
    certain = Objective(features, Training(**BASE))(model, torch.arange(12))

    def distance(progress: float) -> float:
        torch.manual_seed(0)
        return abs(float((objective(model, torch.arange(12), progress) - certain).detach()))

    assert distance(0.01) > distance(1.0) > 0
    assert distance(1.0) / distance(0.01) == pytest.approx(math.exp(-0.99), rel=1e-3)


def test_dropped_turns_keep_the_last_one_and_the_order() -> None:
    torch.manual_seed(0)
    lengths = torch.tensor([1, 2, 4, 4, 3]).repeat(200)
    places, kept = kept_turns(lengths, 4, 0.5)
    assert (places[torch.arange(1000), kept - 1] == lengths - 1).all()
    assert (kept >= 1).all() and (kept <= lengths).all()
    for row, count, length in zip(places.tolist(), kept.tolist(), lengths.tolist(), strict=True):
        assert row[:count] == sorted(set(row[:count])) and row[count:] == [length - 1] * (4 - count)
    four = kept[lengths == 4].float()
    assert four.mean().item() == pytest.approx(2.5, abs=0.15)
    whole, same = kept_turns(lengths, 4, 0.0)
    assert torch.equal(same, lengths)
    assert torch.equal(whole, torch.minimum(torch.arange(4).expand(1000, -1), lengths[:, None] - 1))


def test_hard_groups_put_look_alike_targets_side_by_side(features: SessionFeatures) -> None:
    many = cumulative(300, seed=4)
    groups = HardGroups(many, 4)
    torch.manual_seed(0)
    found = groups.order()
    order, batches = found.tolist(), found.split(4)
    assert sorted(order) == list(range(300))
    final = F.normalize(many.targets[many.target_rows[:, -1]], dim=-1)

    def hardest(parts: tuple[torch.Tensor, ...]) -> float:
        found = []
        for part in parts:
            alike = final[part] @ final[part].T
            rows = many.target_rows[part, -1]
            found.append(alike.masked_fill(rows[:, None] == rows, -1).amax(1))
        return float(torch.cat(found).mean())

    assert hardest(batches) > hardest(torch.randperm(300).split(4)) + 0.1
    for seed, mates in enumerate(groups.mates):
        assert all(many.target_rows[m, -1] != many.target_rows[seed, -1] for m in mates if m >= 0)


def test_the_average_of_the_weights_is_validated_and_kept(features: SessionFeatures) -> None:
    model = build_model("lstm", {"hidden": 8}, features.dim, seed=0)
    average, none = WeightAverage(list(model.parameters()), 0.5), WeightAverage(list(model.parameters()), 0.0)
    seen = []
    for step in range(3):
        with torch.no_grad():
            model.output.bias.fill_(float(step))
        for kept in (average, none):
            kept.update()
        with average.applied():
            seen.append(model.output.bias[0].item())
        assert model.output.bias[0].item() == step
    assert seen == [0.0, 0.5, 1.25]
    with none.applied():
        assert model.output.bias[0].item() == 2.0
    average.keep()
    assert model.output.bias[0].item() == 1.25
    validation = cumulative(30, seed=2)
    found = []
    for ema in (0.0, 0.9):
        trained = build_model("lstm", {"hidden": 8}, features.dim, seed=0)
        lines = list(fit(trained, features, Training(**BASE, ema=ema), 0, validation))
        found.append((trained.output.weight.detach(), lines[-1]["loss"]))
    assert found[0][1] == found[1][1] and not torch.equal(found[0][0], found[1][0])


@pytest.mark.parametrize("name", ["lstm", "gru", "transformer", "no_memory", "turn_weights"])
def test_a_residual_from_the_moving_average_starts_as_the_ewma_row(name: str, features: SessionFeatures) -> None:
    options: dict[str, Any] = {} if name == "turn_weights" else {"residual": "ewma"}
    small = {"transformer": {"width": 8, "heads": 2}}.get(name, {"hidden": 8})
    model = build_model(name, options | small, features.dim, seed=0)
    ewma = build_model("ewma", {}, features.dim)
    chosen = ewma.fit_parameters(features)
    assert model.fit_parameters(features) == chosen and chosen["alpha"] < 1
    queries, _, lengths = features.batch(torch.arange(9))
    torch.testing.assert_close(model.eval()(queries, lengths), ewma(queries, lengths))
    lines = list(fit(model, features, Training(**BASE)))
    assert lines[-1]["chosen"] == chosen and not torch.allclose(model(queries, lengths), ewma(queries, lengths))


@pytest.mark.parametrize(
    "part",
    [
        {"loss": "multi_similarity"},
        {"loss": "triplet"},
        {"negatives": "static"},
        {"negatives": "category"},
        {"hard_groups": 4},
        {"uncertainty": 0.3},
        {"drop_turns": 0.3},
        {"ema": 0.9},
        {"same_target": "ignore"},
        {"weight_decay": 0.1},
        {"padding": "mask", "loss": "multi_similarity"},
    ],
)
def test_any_trainable_model_takes_any_part_and_repeats(part: dict[str, Any], features: SessionFeatures) -> None:
    plain = list(fit(build_model("lstm", {"hidden": 8}, features.dim), features, Training(**BASE)))
    lines = [
        list(fit(build_model("lstm", {"hidden": 8}, features.dim), features, Training(**BASE, **part)))
        for _ in range(2)
    ]
    assert [m["loss"] for m in lines[0]] == [m["loss"] for m in lines[1]]
    assert all(math.isfinite(m["loss"]) for m in lines[0])
    if set(part) - {"ema"}:
        assert lines[0][-1]["loss"] != plain[-1]["loss"]
    for name in ("cm_ntm", "cfir", "dialog_manager"):
        options = {"cm_ntm": {"stages": 2, "hidden": 8}}.get(name, {"width": 8})
        line = next(fit(build_model(name, options, features.dim), features, Training(**BASE, **part)))
        assert math.isfinite(line["loss"])
