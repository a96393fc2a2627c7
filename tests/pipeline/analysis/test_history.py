"""How much earlier turns contribute: known answers on made features, and the command on a real workspace."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner
from torch.nn import functional as F

from cli import main
from pipeline.analysis.history import (
    _inner_products,
    _loss,
    _other_histories,
    fitted_weights,
    last_turn,
    mixed,
    own_targets,
    turns_back,
)
from pipeline.jobs.identities import make_run
from pipeline.jobs.stage2 import evaluate_run
from pipeline.training.data import SessionFeatures
from tests.pipeline.small_demo import Project
from tests.pipeline.training.sessions import cumulative


@pytest.fixture
def features() -> SessionFeatures:
    return cumulative(60, turns=4, seed=3)


def test_turns_are_seen_from_the_last_one_back(features: SessionFeatures) -> None:
    back = turns_back(features)
    for session, length in enumerate(features.lengths.tolist()):
        own = features.queries[features.query_rows[session, :length]]
        assert torch.equal(back[session, :length], own.flip(0))
        assert not back[session, length:].any()
    only_last = torch.zeros(4, 4)
    only_last[:, 0] = 1
    assert torch.equal(mixed(features, only_last), last_turn(features))


def test_a_control_takes_earlier_turns_of_another_session_and_its_own_last(features: SessionFeatures) -> None:
    torch.manual_seed(0)
    queries, lengths = _other_histories(features)
    assert (lengths <= features.lengths).all() and (lengths >= 2).all()
    assert torch.equal(queries[torch.arange(60), lengths - 1], last_turn(features))
    given = features.queries[features.query_rows]
    for session, length in enumerate(lengths.tolist()):
        lenders = [
            other
            for other, n in enumerate(features.lengths.tolist())
            if other != session and torch.equal(given[other, n - length : n - 1], queries[session, : length - 1])
        ]
        assert lenders
    assert not torch.equal(queries[:, 0], given[:, 0])


def test_fitted_weights_find_what_the_target_is_made_of() -> None:
    """The target of a ``cumulative`` session is the sum of its turns: the last turn alone is a bad start, even weights right."""
    features = cumulative(300, turns=3, kinds=12, seed=5)
    weights = fitted_weights(features, own_targets(features))
    for length in (2, 3):
        torch.testing.assert_close(weights[length - 1, :length], torch.full((length,), 1 / length), atol=0.08, rtol=0)
    found, alone = (
        F.cosine_similarity(q, features.targets[features.target_rows[:, -1]]).mean()
        for q in (mixed(features, weights), last_turn(features))
    )
    assert found > alone + 0.1


def test_weights_fitted_on_the_ranked_sessions_have_the_lowest_loss_there() -> None:
    """The loss is what the line's name promises; recall may go either way."""
    ranked, others = cumulative(200, turns=3, kinds=12, seed=5), cumulative(200, turns=3, kinds=12, seed=6)
    galleries = own_targets(ranked)
    parts = [_inner_products(ranked, category, of) for category, of in galleries.items()]
    last_alone = torch.zeros(3, 3)
    last_alone[:, 0] = 1
    own = _loss(fitted_weights(ranked, galleries), parts)
    for weights in (fitted_weights(others, own_targets(others)), last_alone):
        assert own < _loss(weights, parts)


def test_the_category_of_a_session_is_its_gallery(features: SessionFeatures) -> None:
    shirts = tuple(s.model_copy(update={"category": "shirt"}) if n % 2 else s for n, s in enumerate(features.sessions))
    galleries = own_targets(replace(features, sessions=shirts))
    assert len(galleries) == 2
    for session in shirts:
        assert session.target in galleries[session.category].index


@pytest.mark.parametrize("part", ["test", pytest.param("train", marks=pytest.mark.slow)])
def test_the_command_on_the_demo(part: str, demo: Project) -> None:
    where = [str(demo.file), *demo.options, "--device", "cpu", "--draws", "2", "--part", part]
    found = json.loads(CliRunner().invoke(main, ["history", *where, "--json"], catch_exceptions=False).stdout)
    assert found["part"] == part
    lines = {line["name"]: line["found"]["all"] for line in found["lines"]}
    if part == "test":
        experiment = demo.experiment()
        for name, line in (("last", "last turn alone"), ("ewma", "EWMA, the session's own history")):
            evaluated = evaluate_run(experiment, make_run(demo.spec, name, 0))["metrics"]["all"]["overall"]
            assert lines[line] == pytest.approx({key: evaluated[key] for key in lines[line]})
    assert ("fixed weights, fitted on the test sessions' loss" in lines) == (part == "test")
    assert not any("bound" in name for name in lines)
    text = CliRunner().invoke(main, ["history", *where], catch_exceptions=False).stdout
    assert "another session's history (control)" in text and "weights fitted on the train sessions" in text
