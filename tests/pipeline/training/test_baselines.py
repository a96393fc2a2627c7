"""What each baseline promises on its own, against its formula spelled out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from cache import Store, StoreWriter
from manifests.identity import stack_keys, text_key
from manifests.schema import Training
from pipeline.training.data import SessionBatch, add_texts, session_features
from pipeline.training.errors import FeatureError, TrainingError
from pipeline.training.fit import fit
from pipeline.training.models import _stage, build_model
from pipeline.training.models.cfir import CFIR
from pipeline.training.models.dialog_manager import _summed_ranks
from pipeline.training.objective import Step
from pipeline.training.validate import embed, recalls, score
from tests.pipeline.training.sessions import WIDTH, cumulative, row, sessions, write_store
from tests.pipeline.training.test_models import settle

D = 6


def queries(batch: int = 4, turns: int = 3) -> torch.Tensor:
    return torch.sin(2.1 * torch.arange(batch * turns * D, dtype=torch.float64)).view(batch, turns, D)


def step_of(model_queries: torch.Tensor, targets: torch.Tensor, rows: torch.Tensor, lengths: torch.Tensor) -> Step:
    features = cumulative(10)
    return Step(features, SessionBatch(model_queries, targets[rows], lengths), rows, Training(), 1.0)


def test_no_memory_is_the_cm_ntm_with_every_read_at_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    cascade = settle(build_model("cm_ntm", {"stages": 3, "slots": 2, "width": 4, "hidden": 5}, D)).eval()
    with torch.no_grad():
        for stage in cascade.stages:
            stage.read.zero_()
    access = _stage.access

    def without_read(state, hidden, cell, parameters):
        moved = access(state, hidden, cell, parameters)
        return moved._replace(read=torch.zeros_like(moved.read))

    monkeypatch.setattr(_stage, "access", without_read)
    alone = build_model("no_memory", {"hidden": 5}, D).double().eval()
    last = cascade.stages[-1]
    with torch.no_grad():
        alone.controller.weight_ih.copy_(last.controller.weight_ih[:, 4 : 4 + D])  # [r; f; r]: the columns of f
        alone.controller.weight_hh.copy_(last.controller.weight_hh)
        alone.controller.bias_ih.copy_(last.controller.bias_ih)
        alone.controller.bias_hh.copy_(last.controller.bias_hh)
        alone.hidden.copy_(last.hidden)
        alone.cell.copy_(last.cell)
        alone.output.weight.copy_(cascade.output.weight[:, :5])
        alone.output.bias.copy_(cascade.output.bias)
    lengths = torch.tensor([3, 2, 1, 3])
    torch.testing.assert_close(alone(queries(), lengths), cascade(queries(), lengths))


def test_cfir_scores_are_squared_distances_of_the_attended_vectors() -> None:
    model: CFIR = settle(build_model("cfir", {"width": 4, "fields": 3}, D)).eval()  # type: ignore[assignment]
    lengths, candidates = torch.tensor([3, 2, 1, 3]), torch.cos(torch.arange(5 * D, dtype=torch.float64)).view(5, D)
    scores = model.score(queries(), lengths, candidates)
    turns, states = model._read(queries())
    for b, length in enumerate(lengths.tolist()):
        for g in range(5):
            c = model.candidate(candidates[g])
            fields = model.fields(candidates[g]).view(3, 4)
            own = turns[b, :length]
            affinity = model.attention(own) @ fields.T / 2  # the root of width 4
            x = states[b, length - 1] + affinity.amax(1).softmax(0) @ own
            y = c + affinity.amax(0).softmax(0) @ fields
            expected = -model.scale.square() * (x / x.norm() - y / y.norm()).square().sum()
            torch.testing.assert_close(scores[b, g], expected)


def test_cfir_scores_in_blocks_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model = settle(build_model("cfir", {"width": 4, "fields": 2}, D)).eval()
    lengths, candidates = torch.tensor([3, 2, 1, 3]), torch.cos(torch.arange(9 * D, dtype=torch.float64)).view(9, D)
    whole = model.score(queries(), lengths, candidates)
    monkeypatch.setattr("pipeline.training.models.cfir.ATTENTION_HELD", 2 * 4 * 3 * 2)
    torch.testing.assert_close(model.score(queries(), lengths, candidates), whole)


def test_cfir_loss_is_batch_hard_and_no_image_is_its_own_negative() -> None:
    model: CFIR = settle(build_model("cfir", {"width": 4, "fields": 2}, D))  # type: ignore[assignment]
    lengths, rows = torch.tensor([3, 2, 1, 3]), torch.tensor([[0, 1, 2], [1, 3, 3], [2, 2, 2], [4, 4, 5]])
    targets = torch.cos(torch.arange(6 * D, dtype=torch.float64)).view(6, D)
    final = rows[torch.arange(4), lengths - 1]  # sessions 0 and 2 end at image 2
    distances = -model.score(queries(), lengths, targets[final])
    expected = []
    for i in range(4):
        others = [distances[i, j] for j in range(4) if final[j] != final[i]]
        expected.append((1.0 + distances[i, i] - min(others)).clamp_min(0))
    torch.testing.assert_close(
        model.objective(step_of(queries(), targets, rows, lengths)), torch.stack(expected).mean()
    )


def test_the_dialog_manager_ranks_by_squared_distance_not_by_cosine() -> None:
    model = settle(build_model("dialog_manager", {"width": 4}, D)).eval()
    lengths, candidates = torch.tensor([3, 2, 1, 3]), torch.cos(torch.arange(5 * D, dtype=torch.float64)).view(5, D) * 3
    last = model(queries(), lengths)[torch.arange(4), lengths - 1]
    expected = -(last[:, None] - candidates).square().sum(-1)
    torch.testing.assert_close(model.score(queries(), lengths, candidates), expected)


def test_the_surrogate_prefers_the_action_near_all_targets_still_to_come() -> None:
    gallery = torch.tensor([[0.0], [1.0], [2.0], [10.0], [11.0], [20.0]])
    places = torch.tensor([[3, 4, 4]])  # targets of turns 1 and 2; turn 3 is padding
    present = torch.tensor([[True, True, False]])
    actions = torch.tensor([[[0, 3], [0, 4], [0, 4]]])
    found = _summed_ranks(torch.cdist(gallery, gallery), actions, places, present)
    # Around row 0 the gallery stands in its own order; row 3 is 10.0, whose next is row 4.
    assert found[0, 0].tolist() == [3 + 4, 0 + 1] and found[0, 1].tolist() == [4, 0]
    assert found[0, 2].tolist() == [0, 0]


def test_the_dialog_manager_is_pre_trained_and_then_improved() -> None:
    train = cumulative(200, seed=1)
    model = build_model("dialog_manager", {"width": 32, "gallery": 64}, train.dim)
    before = recalls(model, train)["mean"]
    lines = list(fit(model, train, Training(epochs=6, batch_size=40, learning_rate=5e-3), 0, train))
    assert lines[2]["loss"] < lines[0]["loss"] and lines[3]["loss"] > lines[2]["loss"]  # another loss from epoch 4 on
    assert lines[2]["validation"]["mean"] > before + 10
    assert [model.rate(n / 6) for n in range(1, 7)] == [1, 1, 1, 0.1, 0.1, 0.1]
    still = build_model("dialog_manager", {"width": 32, "gallery": 64, "policy_rate": 1e-9}, train.dim)
    frozen = list(fit(still, train, Training(epochs=6, batch_size=40, learning_rate=5e-3), 0, train))
    assert {m["validation"]["mean"] for m in frozen[2:]} == {frozen[2]["validation"]["mean"]}


@pytest.mark.parametrize(
    ("name", "options", "rate"),
    [
        ("gru", {"hidden": 32}, 1e-2),
        pytest.param("transformer", {"width": 32, "layers": 1}, 5e-3, marks=pytest.mark.slow),
        ("no_memory", {"hidden": 32}, 1e-2),
        pytest.param("cfir", {"width": 32}, 3e-3, marks=pytest.mark.slow),
    ],
)
def test_learns_a_task_that_the_last_turn_alone_cannot_solve(name: str, options: dict, rate: float) -> None:
    train, unseen = cumulative(400, seed=1), cumulative(200, seed=2)
    model = build_model(name, options, train.dim, seed=0)
    for _ in fit(model, train, Training(epochs=10, learning_rate=rate, scale=10.0, batch_size=40)):
        pass
    without_memory = recalls(build_model("last", {}, train.dim), unseen)["mean"]
    assert recalls(model, unseen)["mean"] > 85 > 50 > without_memory


def backbone(path: Path, texts: list[str]) -> Store:
    with StoreWriter(path, dataset="toy", extractor="random", fields={"tower": 1}, execution={}) as writer:
        writer.commit("text", stack_keys(text_key(t) for t in texts), np.stack([row(f"x{t}") for t in texts]))
    return Store.open(path)


def test_texts_stand_beside_the_queries_of_their_turns(tmp_path: Path) -> None:
    given = sessions((2, 3, 4))
    features = session_features(write_store(tmp_path / "s", given), given)
    store = backbone(tmp_path / "b", sorted({t.text for s in given for t in s.turns}))
    told = add_texts(features, store)
    inputs = told.batch(torch.arange(3), texts=True).queries
    assert torch.equal(inputs[..., :WIDTH], features.batch(torch.arange(3)).queries)
    for number, session in enumerate(given):
        for n in range(4):
            turn = session.turns[min(n, len(session.turns) - 1)]
            np.testing.assert_array_equal(inputs[number, n, WIDTH:], row(f"x{turn.text}"))
    assert torch.equal(told.subset([2]).batch(torch.tensor([0]), texts=True).queries[0], inputs[2])

    model = build_model("lstm", {"hidden": 3, "texts": WIDTH}, WIDTH)
    assert embed(model, told).shape == (3, WIDTH) and score(model, told, told.targets).shape == (3, len(told.targets))
    blind = build_model("lstm", {"hidden": 3}, WIDTH)
    assert torch.equal(embed(blind, told), embed(blind, features))
    with pytest.raises(FeatureError, match="texts of the turns, which were not loaded"):
        embed(model, features)
    with pytest.raises(TrainingError, match=rf"turns >= 1, {2 * WIDTH}\].*texts = {WIDTH}"):
        model(features.batch(torch.arange(3)).queries, features.lengths)
    with pytest.raises(TrainingError, match="text rows of width 5"):
        build_model("turn_weights", {"texts": 5}, WIDTH)


def test_a_missing_text_names_its_session(tmp_path: Path) -> None:
    given = sessions((2, 3))
    features = session_features(write_store(tmp_path / "s", given), given)
    store = backbone(tmp_path / "b", [t.text for t in given[0].turns])
    with pytest.raises(FeatureError, match=r"no text row for a turn of session 's1'.*extract"):
        add_texts(features, store)
    with pytest.raises(FeatureError, match="no text rows"):
        add_texts(features, Store.open(tmp_path / "s"))
