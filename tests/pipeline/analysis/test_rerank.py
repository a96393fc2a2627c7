"""Re-ranking moves the head and nothing else; the cut-off keeps what it was asked to keep."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.analysis.rerank import constraint_scores, cutoff_report, fit_cutoff, rerank
from pipeline.evaluation.ranking import RankingError, ranks, score_ranks
from pipeline.training.errors import FeatureError

rng = np.random.default_rng(0)


def test_constraints_are_the_mean_cosine_of_the_texts_there_are() -> None:
    texts, images = rng.standard_normal((3, 2, 5)), rng.standard_normal((4, 5))
    found = constraint_scores(texts, np.array([2, 1, 0]), images)
    for s, length in enumerate((2, 1, 0)):
        for g in range(4):
            cosines = [
                texts[s, n] @ images[g] / np.linalg.norm(texts[s, n]) / np.linalg.norm(images[g]) for n in range(length)
            ]
            assert found[s, g] == pytest.approx(np.mean(cosines) if cosines else 0.0, abs=1e-6)


def test_only_the_head_is_reordered() -> None:
    scores = rng.standard_normal((6, 30)).astype(np.float32)
    have = rng.standard_normal((6, 30)).astype(np.float32) * 10
    new = rerank(scores, must_have=have, top=8)
    for s in range(6):
        before, after = np.argsort(-scores[s]), np.argsort(-new[s])
        assert set(after[:8]) == set(before[:8]) and list(after[8:]) == list(before[8:])
        expected = sorted(before[:8], key=lambda g: -(scores[s, g] + 0.2 * have[s, g]))
        assert list(after[:8]) == expected


def test_must_avoid_pushes_down_and_must_have_up() -> None:
    scores = np.array([[0.9, 0.8, 0.7]], dtype=np.float32)
    wanted = np.array([[0.0, 0.0, 1.0]], dtype=np.float32)
    assert np.argmax(rerank(scores, must_have=wanted, have_weight=0.5)) == 2
    assert np.argmax(rerank(scores, must_avoid=1 - wanted, avoid_weight=0.5)) == 2
    np.testing.assert_array_equal(rerank(scores), scores)


def test_ties_at_the_border_of_the_head_are_treated_alike() -> None:
    scores = np.array([[0.9, 0.5, 0.5, 0.1]], dtype=np.float32)
    new = rerank(scores, must_have=np.array([[0.0, 0.0, 9.0, 0.0]], dtype=np.float32), top=2)
    assert np.argmax(new) == 2 and new[0, 3] == new.min()


def test_score_ranks_equal_ranks_for_cosines_and_tie_pessimistically() -> None:
    queries, candidates = rng.standard_normal((5, 4)), rng.standard_normal((9, 4))
    candidates[3] = candidates[7]
    candidates /= np.linalg.norm(candidates, axis=1, keepdims=True)
    targets = np.array([3, 7, 0, 1, 8])
    cosines = (queries / np.linalg.norm(queries, axis=1, keepdims=True)) @ candidates.T
    np.testing.assert_array_equal(score_ranks(cosines, targets, candidates), ranks(queries, candidates, targets))
    assert score_ranks(np.zeros((1, 9)), np.array([2]), candidates).tolist() == [9]
    with pytest.raises(RankingError, match="one score for each"):
        score_ranks(cosines[:, :3], targets, candidates)
    with pytest.raises(RankingError, match="session 's1'"):
        score_ranks(
            np.where(np.arange(9) == 2, np.nan, [[0.0], [1.0]]) * [[0], [1]] + 0,
            targets[:2],
            candidates,
            names=("s0", "s1"),
        )


def test_the_cutoff_learns_what_a_cosine_means_for_each_kind_of_query() -> None:
    """Two kinds of queries whose relevant candidates score 0.9 and 0.4: no one threshold on the cosine fits both."""
    kind = np.arange(80) % 2
    queries = np.eye(4)[kind] + 0.01 * rng.standard_normal((80, 4))
    base = np.where(kind == 0, 0.6, 0.1)[:, None]
    scores = base + 0.05 * rng.standard_normal((80, 20))
    targets = rng.integers(0, 20, 80)
    np.put_along_axis(scores, targets[:, None], base + 0.3, axis=1)
    half = slice(0, 40)
    cutoff = fit_cutoff(queries[half], scores[half], targets[half], recall=1.0)
    report = cutoff_report(cutoff.keeps(queries[half], scores[half]), targets[half])
    assert report["target kept"] == 100.0
    unseen = cutoff_report(cutoff.keeps(queries[40:], scores[40:]), targets[40:])
    assert unseen["target kept"] >= 90 and unseen["candidates"] < 3
    nothing = np.repeat(base[40:], 20, axis=1) - 0.2
    assert cutoff_report(cutoff.keeps(queries[40:], nothing), targets[40:])["nothing relevant"] == 100.0
    probabilities = cutoff.probabilities(queries, scores)
    np.testing.assert_array_equal(np.argsort(probabilities, 1, "stable"), np.argsort(scores, 1, "stable"))


def test_towers_without_a_common_space_are_refused() -> None:
    with pytest.raises(FeatureError, match="share a space"):
        constraint_scores(np.zeros((2, 1, 4)), np.ones(2), np.zeros((3, 5)))
