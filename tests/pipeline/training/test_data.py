"""Sessions become row numbers into unique features, or are left out by name."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from cache import Store
from pipeline.training.data import session_features
from pipeline.training.errors import FeatureError, MissingFeaturesError
from tests.pipeline.training.sessions import row, sessions, write_store


def test_every_turn_finds_its_own_query_and_target(tmp_path: Path) -> None:
    given = sessions((2, 3, 4))
    features = session_features(write_store(tmp_path / "s", given), given)
    queries, targets, lengths = features.batch(torch.arange(3))
    assert lengths.tolist() == [2, 3, 4] and features.turns == 4 and features.skipped == ()
    for number, session in enumerate(given):
        for n, (turn, target) in enumerate(zip(session.turns, session.targets, strict=True)):
            np.testing.assert_array_equal(queries[number, n], row(f"q{turn.reference}{turn.text}"))
            np.testing.assert_array_equal(targets[number, n], row(f"t{target}"))
        for n in range(len(session.turns), 4):  # padding repeats the last turn
            assert torch.equal(queries[number, n], queries[number, len(session.turns) - 1])
            assert torch.equal(targets[number, n], targets[number, len(session.turns) - 1])


def test_concatenated_queries_and_final_targets(tmp_path: Path) -> None:
    given = sessions((2, 4))
    features = session_features(write_store(tmp_path / "s", given), given)
    queries, targets, lengths = features.concatenated(torch.tensor([1, 0]))
    assert queries.shape == targets.shape == (2, 1, features.dim) and lengths.tolist() == [1, 1]
    for place, session in enumerate((given[1], given[0])):
        np.testing.assert_array_equal(queries[place, 0], row(f"q{session.turns[0].reference}{session.text}"))
        np.testing.assert_array_equal(targets[place, 0], row(f"t{session.target}"))


def test_shared_rows_are_loaded_once(tmp_path: Path) -> None:
    one = sessions((2,))[0]
    other = one.model_copy(update={"id": "again"})
    features = session_features(write_store(tmp_path / "s", [one]), [one, other])
    assert len(features) == 2 and features.queries.shape[0] == 3 and features.targets.shape[0] == 2


def test_sessions_with_a_missing_row_are_left_out_and_named(tmp_path: Path) -> None:
    given = sessions((2, 2, 2, 2, 2))
    turn = given[1].turns[1]
    store = write_store(
        tmp_path / "s",
        given,
        without_query=[(turn.reference, turn.text), (given[4].turns[0].reference, given[4].text)],
        without_target=[given[2].target],
        unbound=[given[3].turns[0].reference],
    )
    features = session_features(store, given)
    assert [s.id for s in features.sessions] == ["s0"] and features.skipped == ("s1", "s2", "s3", "s4")
    reasons = dict(zip(features.skipped, features.reasons, strict=True))
    assert all(repr(name) in reason for name, reason in reasons.items())
    assert "turn 2" in reasons["s1"] and repr(turn.reference) in reasons["s1"]
    assert "target row" in reasons["s2"] and given[2].target in reasons["s2"]
    assert "turn 1" in reasons["s3"] and "all captions" in reasons["s4"]


def test_no_session_left_is_incomplete_and_says_what_to_run(tmp_path: Path) -> None:
    store = write_store(tmp_path / "s", sessions((2,)))
    others = [s.model_copy(update={"target": "elsewhere"}) for s in sessions((2, 2))]
    with pytest.raises(MissingFeaturesError, match=r"none of 2 sessions.*'elsewhere'.*run `extract`") as caught:
        session_features(store, others)
    assert caught.value.exit_code == 3


def test_features_that_are_not_finite_are_refused_by_row(tmp_path: Path) -> None:
    given = sessions((2, 2))
    write_store(tmp_path / "s", given)
    store = Store.open(tmp_path / "s", verify="header")  # the digest would already refuse the shard
    bad = int(store.find("query", store.keys("query")[[2]])[0])
    with h5py.File(tmp_path / "s" / store.tables["query"].shards[0].file, "r+") as shard:
        dataset = next(d for d in shard.values() if d.dtype.kind == "f")
        dataset[bad] = np.nan
    with pytest.raises(FeatureError, match=rf"table 'query'.*1 rows \({bad}\).*session.*extract"):
        session_features(store, given)


def test_query_and_target_widths_must_agree(tmp_path: Path) -> None:
    given = sessions((2,))
    with pytest.raises(FeatureError, match=r"f_qry has 6 dimensions and f_tar 4.*composer"):
        session_features(write_store(tmp_path / "s", given, target_width=4), given)


def test_a_subset_shares_the_rows(tmp_path: Path) -> None:
    given = sessions((2, 3, 4))
    features = session_features(write_store(tmp_path / "s", given), given)
    part = features.subset([2, 0])
    assert [s.id for s in part.sessions] == ["s2", "s0"] and part.queries is features.queries
    assert torch.equal(part.batch(torch.tensor([0])).queries, features.batch(torch.tensor([2])).queries)
