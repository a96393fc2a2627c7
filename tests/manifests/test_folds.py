"""Folds over train sessions: no shared pair, no test session, and the same on any machine."""

from __future__ import annotations

import random

import pytest

from manifests.errors import FashionNTMError
from manifests.folds import FoldError, pair_clean_folds, train_only
from manifests.schema import Dataset, Session
from tests.worlds import world


def pairs(sessions: list[Session]) -> set[tuple[str, str]]:
    return {pair for session in sessions for pair in session.pairs}


def test_folds_share_no_pair_and_hold_every_session_once() -> None:
    sessions = world().split("train")
    folds = pair_clean_folds(sessions, 3)
    assert sorted(i for fold in folds for i in fold) == list(range(len(sessions)))
    held = [pairs([sessions[i] for i in fold]) for fold in folds]
    assert not (held[0] & held[1] or held[0] & held[2] or held[1] & held[2])


def test_folds_do_not_depend_on_the_order_of_the_sessions() -> None:
    sessions = list(world().split("train"))

    def named(given: list[Session]) -> list[set[str]]:
        return [{given[i].id for i in fold} for fold in pair_clean_folds(given, 3, seed=1)]

    mixed = random.Random(0).sample(sessions, len(sessions))
    assert named(sessions) == named(mixed)


def test_a_test_session_is_refused() -> None:
    dataset = world()
    with pytest.raises(FoldError, match=r"30 sessions are not train sessions \(dress45.*nothing may be chosen"):
        pair_clean_folds(dataset.sessions, 3)
    assert issubclass(FoldError, FashionNTMError)


def test_train_only_leaves_nothing_to_test_on() -> None:
    kept = train_only(world())
    assert kept.split("test") == () and kept.split("train") == world().split("train")
    assert {g.split for g in kept.galleries} == {"train"}


def test_too_many_folds() -> None:
    sessions = world().split("train")[:2]
    with pytest.raises(FoldError, match="ask for fewer folds"):
        pair_clean_folds(sessions, 40)
    with pytest.raises(FoldError, match="at least 2"):
        pair_clean_folds(sessions, 1)


@pytest.mark.slow
def test_folds_of_the_real_sessions_are_balanced(mt_fashioniq: Dataset) -> None:
    sessions = mt_fashioniq.split("train")
    folds = pair_clean_folds(sessions, 3)
    assert max(map(len, folds)) - min(map(len, folds)) < 0.02 * len(sessions)
