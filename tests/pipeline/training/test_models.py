"""The contract of every memory model that is found by name, and its frozen numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from manifests.errors import ManifestError
from pipeline.training.checkpoint import load_model, save_model
from pipeline.training.errors import TrainingError
from pipeline.training.models import MemoryModel, build_model, models

B, T, D = 5, 3, 6
OPTIONS: dict[str, dict[str, Any]] = {
    "ewma": {"alpha": 0.7},
    "lstm": {"hidden": 4},
    "gru": {"hidden": 4},
    "turn_weights": {"turns": 3, "hidden": 4, "dropout": 0.0},
    "transformer": {"width": 4, "layers": 1, "heads": 2, "turns": 4},
    "no_memory": {"hidden": 4},
    "cfir": {"width": 4, "fields": 2},
    "dialog_manager": {"width": 4, "gallery": 8},
    "v_ntm": {"slots": 3, "width": 4, "hidden": 5},
    "cm_ntm": {"stages": 3, "slots": 2, "width": 4, "hidden": 5},
}
CANDIDATES = torch.cos(1.1 * torch.arange(7 * D, dtype=torch.float64)).view(7, D)


def build(name: str, seed: int = 0, **more: Any) -> MemoryModel:
    return build_model(name, OPTIONS.get(name, {}) | more, D, seed)


def queries_for(model: MemoryModel, batch: int = B) -> tuple[Tensor, Tensor]:
    """Double-precision queries [B, T, D] (T = 1 for a model of concatenated captions) and lengths."""
    turns = T if model.reads == "turns" else 1
    waves = torch.sin(2.3 * torch.arange(batch * turns * D, dtype=torch.float64)) * 1.3
    return waves.view(batch, turns, D), torch.arange(batch) % turns + 1


def settle(model: MemoryModel) -> MemoryModel:
    """Double precision, every weight and statistic at a fixed value far from its initial one."""
    model.double()
    with torch.no_grad():
        for number, (name, value) in enumerate(sorted(model.state_dict().items())):
            wave = 0.4 * torch.sin(1.7 * torch.arange(value.numel(), dtype=torch.float64) + number)
            if name.endswith("running_var"):
                wave = 0.5 + wave.abs()
            if name != "alpha":
                value.copy_(wave.view(value.shape))
    return model


names = pytest.mark.parametrize("name", models.names())


@names
def test_contract(name: str, tmp_path: Path) -> None:
    model = settle(build(name)).eval()
    assert model.title and model.version >= 1 and model.name == name
    queries, lengths = queries_for(model)
    outputs = model(queries, lengths)
    assert outputs.shape == queries.shape and outputs.dtype == queries.dtype and torch.isfinite(outputs).all()

    order = torch.tensor([2, 4, 0, 1, 3])
    torch.testing.assert_close(model(queries[order], lengths[order]), outputs[order])
    assert torch.isfinite(model(queries[:1], lengths[:1])).all()  # a batch of one, in eval mode

    last = outputs[torch.arange(B), lengths - 1]
    changed = queries.clone()
    changed[torch.arange(queries.shape[1]) >= lengths[:, None]] = 100.0
    torch.testing.assert_close(model(changed, lengths)[torch.arange(B), lengths - 1], last)

    save_model(tmp_path, model)
    loaded = load_model(tmp_path)
    assert type(loaded) is type(model) and loaded.options == model.options and not loaded.training
    assert torch.equal(loaded(queries, lengths), outputs)


@names
def test_scores_depend_on_nothing_but_a_session_and_a_candidate(name: str) -> None:
    model = settle(build(name)).eval()
    queries, lengths = queries_for(model)
    scores = model.score(queries, lengths, CANDIDATES)
    assert scores.shape == (B, len(CANDIDATES)) and torch.isfinite(scores).all()
    sessions, candidates = torch.tensor([3, 0, 4]), torch.tensor([6, 2])
    part = model.score(queries[sessions], lengths[sessions], CANDIDATES[candidates])
    torch.testing.assert_close(part, scores[sessions][:, candidates])
    changed = queries.clone()
    changed[torch.arange(queries.shape[1]) >= lengths[:, None]] = 100.0
    torch.testing.assert_close(model.score(changed, lengths, CANDIDATES), scores)
    if not model.scores:
        last = model(queries, lengths)[torch.arange(B), lengths - 1]
        expected = torch.cosine_similarity(last[:, None], CANDIDATES[None], dim=-1)
        torch.testing.assert_close(scores, expected)


@names
def test_a_turn_depends_on_no_later_one(name: str) -> None:
    model = settle(build(name))
    queries, lengths = queries_for(model)
    for mode in (True, False):
        model.train(mode)
        queries = queries.detach().requires_grad_()
        outputs = model(queries, lengths)
        for n in range(queries.shape[1]):
            if outputs.requires_grad:
                (gradient,) = torch.autograd.grad(outputs[:, n].square().sum(), queries, retain_graph=True)
                assert not gradient[:, n + 1 :].any() and gradient[:, n].any()


@names
def test_trainable_models_have_parameters_and_gradients_for_each(name: str) -> None:
    model = settle(build(name)).train()
    assert model.trainable == any(True for _ in model.parameters())
    if model.trainable:
        queries, lengths = queries_for(model)
        answer = model.score(queries, lengths, CANDIDATES) if model.scores else model(queries, lengths)
        answer.square().sum().backward()
        assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


@names
def test_same_seed_same_weights_and_no_side_effect(name: str) -> None:
    before = torch.get_rng_state()
    one, other, third = build(name, 3), build(name, 3), build(name, 4)
    assert torch.equal(torch.get_rng_state(), before)
    for key, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[key])
    if one.trainable:
        assert any(not torch.equal(a, b) for a, b in zip(one.parameters(), third.parameters(), strict=True))


@names
def test_contract_errors(name: str) -> None:
    model = build(name)
    turns = T if model.reads == "turns" else 1
    with pytest.raises(TrainingError, match=rf"{name}: queries have shape \[2, {turns}, 7\], expected .* 6\]"):
        model(torch.zeros(2, turns, D + 1), torch.ones(2, dtype=torch.int64))
    with pytest.raises(TrainingError, match="queries have shape"):
        model(torch.zeros(2, D), torch.ones(2, dtype=torch.int64))
    with pytest.raises(TrainingError, match="lengths"):
        model(torch.zeros(2, turns, D), torch.ones(3, dtype=torch.int64))


def test_concatenated_captions_are_one_turn() -> None:
    with pytest.raises(TrainingError, match="cat reads one query of all captions, got 3 turns"):
        build("cat")(torch.zeros(2, 3, D), torch.ones(2, dtype=torch.int64))


def test_unknown_models_and_options_name_the_nearest() -> None:
    with pytest.raises(ManifestError, match=r"unknown memory model 'cmntm'.*did you mean 'cm_ntm'"):
        build_model("cmntm", {}, D)
    with pytest.raises(ManifestError, match=r"models.cm_ntm.stage: unknown key .*'stages'"):
        build_model("cm_ntm", {"stage": 2}, D)
    with pytest.raises(ManifestError, match=r"models.v_ntm.stages: found 2"):
        build_model("v_ntm", {"stages": 2}, D)


# Final-turn outputs of sessions 0 and 4 (first three values), in training and in eval mode, in double precision.
GOLDEN: dict[str, tuple[list[float], list[float]]] = {
    "avg": (
        [0.0, 0.96941677583, -1.29179830472, 0.300792147338, -0.95870980914, 0.976738567053],
        [0.0, 0.96941677583, -1.29179830472, 0.300792147338, -0.95870980914, 0.976738567053],
    ),
    "cat": (
        [0.0, 0.96941677583, -1.29179830472, -1.26805994065, 1.05844663796, -0.14237528871],
        [0.0, 0.96941677583, -1.29179830472, -1.26805994065, 1.05844663796, -0.14237528871],
    ),
    "cfir": (
        [0.197060320818, 0.132579617377, -0.231224628328, 0.23117767336, 0.183126281669, -0.278367299668],
        [0.197060320818, 0.132579617377, -0.231224628328, 0.23117767336, 0.183126281669, -0.278367299668],
    ),
    "cm_ntm": (
        [-0.809807069245, 0.501580241273, 0.144544400856, -1.04757881455, 0.573458668988, 0.250357303672],
        [-0.809801061938, 0.501583344361, 0.144532696709, -1.04711846227, 0.572986722685, 0.250763379461],
    ),
    "dialog_manager": (
        [-0.522191874547, -0.408192578561, 0.252202610953, -0.542229082076, -0.347082689108, 0.378497387534],
        [-0.522191874547, -0.408192578561, 0.252202610953, -0.542229082076, -0.347082689108, 0.378497387534],
    ),
    "ewma": (
        [0.0, 0.96941677583, -1.29179830472, 0.012357314188, -0.830154689212, 1.09386701256],
        [0.0, 0.96941677583, -1.29179830472, 0.012357314188, -0.830154689212, 1.09386701256],
    ),
    "gru": (
        [-0.657074547933, -0.531646251179, 0.172424658041, -0.315227078765, -0.271854051161, 0.282302562291],
        [-0.657074547933, -0.531646251179, 0.172424658041, -0.315227078765, -0.271854051161, 0.282302562291],
    ),
    "last": (
        [0.0, 0.96941677583, -1.29179830472, -0.420294978518, -0.637321990163, 1.26955969828],
        [0.0, 0.96941677583, -1.29179830472, -0.420294978518, -0.637321990163, 1.26955969828],
    ),
    "lstm": (
        [-0.469744056904, -0.354205244191, 0.293627699333, -0.438089607752, -0.343403335681, 0.280755554481],
        [-0.469744056904, -0.354205244191, 0.293627699333, -0.438089607752, -0.343403335681, 0.280755554481],
    ),
    "no_memory": (
        [-0.0778212620201, 0.434529705755, 0.0442345181923, -0.16238487292, 0.466419156801, 0.184247346509],
        [-0.0778212620201, 0.434529705755, 0.0442345181923, -0.16238487292, 0.466419156801, 0.184247346509],
    ),
    "st_history": (
        [0.0, 0.96941677583, -1.29179830472, -1.26805994065, 1.05844663796, -0.14237528871],
        [0.0, 0.96941677583, -1.29179830472, -1.26805994065, 1.05844663796, -0.14237528871],
    ),
    "transformer": (
        [-0.507998821092, -0.6488970292, 0.108482416393, -0.270765941085, -0.604836062331, -0.0521374755773],
        [-0.507998821092, -0.6488970292, 0.108482416393, -0.270765941085, -0.604836062331, -0.0521374755773],
    ),
    "turn_weights": (
        [0.0, -0.0367235357498, 0.0489360225735, -0.887619769644, 0.525128570598, 0.187858620287],
        [0.0, -0.0367235357498, 0.0489360225735, -0.887619769644, 0.525128570598, 0.187858620287],
    ),
    "v_ntm": (
        [0.341188918408, 0.289749262091, -0.247121169075, 0.43542346981, 0.136746030824, -0.0604629695106],
        [0.341188918408, 0.289749262091, -0.247121169075, 0.43542346981, 0.136746030824, -0.0604629695106],
    ),
}


@names
def test_golden_numbers(name: str) -> None:
    model = settle(build(name))
    queries, lengths = queries_for(model)
    found = []
    for mode in (True, False):
        outputs = model.train(mode)(queries, lengths)[torch.arange(B), lengths - 1]
        found.append(outputs[[0, 4], :3].flatten())
    if name not in GOLDEN:
        numbers = ",\n        ".join(str([float(f"{value:.12g}") for value in values.tolist()]) for values in found)
        pytest.fail(f'no golden numbers of {name}: add to GOLDEN\n    "{name}": (\n        {numbers},\n    ),')
    for values, expected in zip(found, GOLDEN[name], strict=True):
        torch.testing.assert_close(values, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-12)


def test_averages_by_hand() -> None:
    queries = torch.tensor([[[1.0], [3.0], [8.0]]])
    lengths = torch.tensor([3])
    assert build_model("avg", {}, 1)(queries, lengths).flatten().tolist() == [1.0, 2.0, 4.0]
    assert build_model("last", {}, 1)(queries, lengths).flatten().tolist() == [1.0, 3.0, 8.0]
    assert build_model("ewma", {"alpha": 0.5}, 1)(queries, lengths).flatten().tolist() == [1.0, 2.0, 5.0]


def test_dropout_acts_in_training_only_and_residual_adds_the_query() -> None:
    for name in ("lstm", "cm_ntm"):
        plain, residual = settle(build(name)).eval(), settle(build(name, residual=True)).eval()
        queries, lengths = queries_for(plain)
        torch.testing.assert_close(residual(queries, lengths), plain(queries, lengths) + queries)
        dropping = settle(build(name, dropout=0.5)).eval()
        torch.testing.assert_close(dropping(queries, lengths), plain(queries, lengths))
        assert not torch.allclose(dropping.train()(queries, lengths), plain.train()(queries, lengths))
