"""Ranks after every turn: hits and best rank so far, padding, and models that answer after the last turn only."""

from __future__ import annotations

import numpy as np
import pytest

from manifests.schema import Session, Turn
from pipeline.evaluation.evaluate import Candidates, evaluate
from pipeline.evaluation.turns import TurnRanks, rank_turns


def test_curves_count_only_turns_that_exist() -> None:
    ranks = TurnRanks(("a", "b"), np.array([[9, 2, 20], [1, 4, 0]]))
    found = ranks.curves((3,))
    assert found["n"] == [2, 2, 1]
    assert found["R@3"] == [50, 50, 0]
    assert found["Hits@3"] == [50, 100, 100]
    assert found["best"] == pytest.approx([np.log2(9) / 2, 0.5, 1.0])


def test_each_turn_is_ranked_as_a_session_that_ends_there() -> None:
    rng = np.random.default_rng(0)
    names = tuple("abcdefgh")
    gallery = {"c": Candidates(names, rng.normal(size=(8, 4)).astype(np.float32))}
    lengths = [3, 1, 2]
    sessions = [
        Session(
            id=str(n), category="c", split="test", target=names[n], turns=(Turn(captions=("x",)),) * length,
            turn_targets="final",
        )
        for n, length in enumerate(lengths)
    ]  # fmt: skip
    outputs = rng.normal(size=(3, 3, 4)).astype(np.float32)
    found = rank_turns(outputs, lengths, sessions, gallery)
    assert (found.ranks > 0).tolist() == [[True] * 3, [True, False, False], [True, True, False]]
    for turn in range(3):
        alone = evaluate(outputs[:, turn], sessions, gallery).ranks
        assert [r for r in found.ranks[:, turn] if r] == [alone[n] for n in range(3) if lengths[n] > turn]
    last = rank_turns(outputs[:, :1], lengths, sessions, gallery)
    assert (last.first, last.ranks.shape) == (3, (3, 1)) and (last.ranks > 0).all()
