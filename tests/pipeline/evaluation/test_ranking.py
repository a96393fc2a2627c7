"""Ranks by counting: against a second implementation, on ties, and on features that cannot be ranked."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.evaluation.ranking import RankingError, ranks


def features(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_a_rank_is_the_place_in_the_sorted_gallery() -> None:
    queries, candidates = features(0, 7, 5), features(1, 23, 5)
    targets = np.arange(7) * 3
    cosine = (queries @ candidates.T) / np.linalg.norm(queries, axis=1)[:, None] / np.linalg.norm(candidates, axis=1)
    order = np.argsort(-cosine, axis=1)
    places = [order[n].tolist().index(t) + 1 for n, t in enumerate(targets)]
    assert ranks(queries, candidates, targets).tolist() == places


def test_cosine_ignores_length() -> None:
    queries, candidates, targets = features(0, 6, 4), features(1, 11, 4), np.arange(6)
    scaled = ranks(queries * 1e-30, candidates * np.linspace(1e-3, 1e30, 11, dtype=np.float32)[:, None], targets)
    assert scaled.tolist() == ranks(queries, candidates, targets).tolist()


def test_duplicates_of_the_target_rank_before_it() -> None:
    query = np.array([[1.0, 0.0]], dtype=np.float32)
    candidates = np.array([[1, 0.5], [0, 1], [1, 0.5], [1, 0], [1, 0.5]], dtype=np.float32)
    assert ranks(query, candidates, np.array([0])).tolist() == [4]
    assert ranks(query, candidates, np.array([3])).tolist() == [1]
    assert ranks(query, candidates, np.array([1])).tolist() == [5]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 70), st.integers(1, 90), st.integers(1, 30), st.integers(1, 200), st.integers(0, 99))
def test_equal_candidates_always_tie(gallery: int, dim: int, distinct: int, block: int, seed: int) -> None:
    """Wherever the copies stand and however the work is cut: all copies of a candidate have one rank, their last."""
    kind = np.random.default_rng(seed).integers(0, distinct, gallery)
    candidates = features(seed, distinct, dim)[kind]
    twins = np.flatnonzero(kind == kind[0])
    queries = np.repeat(features(seed + 1, 1, dim), len(twins), axis=0)
    found = ranks(queries, candidates, twins, block=block)
    assert len(set(found.tolist())) == 1
    assert len(twins) <= found[0] <= gallery


def test_blocks_do_not_change_the_ranks() -> None:
    queries, candidates, targets = features(0, 50, 16), features(1, 40, 16), np.arange(50) % 40
    whole = ranks(queries, candidates, targets)
    assert all(ranks(queries, candidates, targets, block=b).tolist() == whole.tolist() for b in (1, 40, 41, 130))


def test_a_query_without_direction_ranks_last() -> None:
    queries = np.zeros((1, 3), dtype=np.float32)
    assert ranks(queries, features(0, 9, 3), np.array([2])).tolist() == [9]


def test_half_precision_features_are_ranked_in_single() -> None:
    queries, candidates = features(0, 5, 8).astype(np.float16), features(1, 12, 8).astype(np.float16)
    same = ranks(queries.astype(np.float32), candidates.astype(np.float32), np.arange(5))
    assert ranks(queries, candidates, np.arange(5)).tolist() == same.tolist()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_session_without_a_finite_score_is_named(value: float) -> None:
    queries = features(0, 3, 4)
    queries[1, 2] = value
    with pytest.raises(RankingError, match=r"1 of 3 \(session 'shirt/test/00007'\).*train again"):
        ranks(queries, features(1, 5, 4), np.arange(3), names=["a", "shirt/test/00007", "c"])


def test_damaged_candidates_are_named_by_row() -> None:
    candidates = features(1, 5, 4)
    candidates[3] = np.nan
    with pytest.raises(RankingError, match=r"candidate row 3.*verify the store"):
        ranks(features(0, 2, 4), candidates, np.arange(2))


@pytest.mark.parametrize("target", [-1, 5])
def test_a_target_outside_the_gallery_is_named(target: int) -> None:
    with pytest.raises(RankingError, match=rf"session 'b': target row {target} is not among the 5"):
        ranks(features(0, 2, 4), features(1, 5, 4), np.array([0, target]), names=["a", "b"])


def test_shapes_that_do_not_fit_are_quoted() -> None:
    with pytest.raises(RankingError, match=r"queries \[2, 4\] and candidates \[5, 3\]"):
        ranks(features(0, 2, 4), features(1, 5, 3), np.arange(2))
    with pytest.raises(RankingError, match="2 queries, 3 targets"):
        ranks(features(0, 2, 4), features(1, 5, 4), np.arange(3))


def test_no_session_has_no_rank() -> None:
    assert ranks(features(0, 0, 4), features(1, 5, 4), np.array([], dtype=np.int64)).shape == (0,)
