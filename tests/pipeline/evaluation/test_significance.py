"""The tests reject a true null about as often as they say, and find a planted difference."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from pipeline.evaluation.metrics import metrics_of
from pipeline.evaluation.significance import (
    Difference,
    SeedTest,
    bootstrap,
    difference,
    holm,
    interval,
    session_values,
    sign_flip,
    strata_of,
)


def test_session_values_average_to_the_metrics() -> None:
    ranks = np.array([1, 5, 6, 8, 9, 400])
    found = metrics_of(ranks)
    for metric in ("R@1", "R@5", "R@8", "MRR", "mean"):
        assert session_values(ranks, metric).mean() == pytest.approx(found[metric])


def test_the_bootstrap_has_the_spread_of_the_mean() -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, (400, 1))
    draws = bootstrap(values, [np.arange(400)], resamples=4000)
    assert draws.mean() == pytest.approx(values.mean(), abs=0.01)
    assert draws.std() == pytest.approx(values.std() / 20, rel=0.05)
    low, high = interval(draws[:, 0])
    assert low < values.mean() < high
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.06)


def test_strata_are_averaged_with_equal_weight() -> None:
    strata = strata_of(["a"] * 10 + ["b"] * 90, "categories")
    assert [len(s) for s in strata] == [10, 90]
    assert [len(s) for s in strata_of(["a", "b"], "sessions")] == [2]
    values = np.concatenate([np.full(10, 100.0), np.zeros(90)])[:, None]
    assert bootstrap(values, strata, resamples=7).ravel().tolist() == [50.0] * 7


def test_columns_see_the_same_draws_in_blocks_too() -> None:
    values = np.random.default_rng(1).normal(size=(50, 1))
    draws = bootstrap(np.hstack([values, values + 1]), [np.arange(50)], resamples=300)
    np.testing.assert_allclose(draws[:, 1] - draws[:, 0], 1.0)


def simulate(rng: np.random.Generator, gain: float) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Hits in percent of two methods on 300 sessions of three categories that differ in difficulty; b is harder to beat."""
    hard = rng.beta(1.0, 2.0, 300)
    strata = strata_of(["x"] * 100 + ["y"] * 150 + ["z"] * 50, "categories")
    b = 100.0 * (rng.random(300) < hard)
    a = 100.0 * (rng.random(300) < np.clip(hard + gain, 0, 1))
    return a, b, strata


def resampled_gap(a: np.ndarray, b: np.ndarray, strata: list[np.ndarray], seed: int) -> Difference:
    """a - b over the same sessions, as comparisons of runs compute it."""
    gap = a - b
    value = float(np.mean([gap[members].mean() for members in strata]))
    return difference(value, bootstrap(gap[:, None], strata, resamples=600, seed=seed)[:, 0])


@pytest.mark.slow
def test_the_bootstrap_rejects_a_true_null_five_times_in_a_hundred() -> None:
    rng, trials = np.random.default_rng(5), 600
    found = []
    for n in range(trials):
        a, b, strata = simulate(rng, gain=0.0)
        found.append(resampled_gap(a, b, strata, seed=n))
    rejected = np.mean([f.p < 0.05 for f in found])
    covered = np.mean([f.low <= 0 <= f.high for f in found])
    assert 0.025 < rejected < 0.08, rejected  # 0.05, three standard errors of 600 trials are 0.027
    assert 0.92 < covered < 0.975, covered


def test_the_bootstrap_finds_a_planted_difference() -> None:
    rng = np.random.default_rng(6)
    found = [resampled_gap(*simulate(rng, gain=0.12), seed=n) for n in range(60)]
    assert np.mean([f.p < 0.05 and f.value > 0 for f in found]) > 0.7


def test_the_sign_flip_test_equals_all_patterns_by_hand() -> None:
    a, b = np.array([3.1, 2.2, 4.0, 1.5, 2.9, 0.4]), np.array([2.0, 2.5, 2.2, 1.0, 2.0, 0.9])
    gap = a - b
    means = np.array([np.mean(gap * signs) for signs in itertools.product((1, -1), repeat=6)])
    by_hand = min(1.0, 2 * min(np.mean(means >= gap.mean() - 1e-12), np.mean(means <= gap.mean() + 1e-12)))
    found = sign_flip(a, b)
    assert found.p == pytest.approx(by_hand)
    assert (found.n, found.least) == (6, 2 / 64)


@pytest.mark.parametrize("decimals", [0, 1, 12])
def test_the_sign_flip_test_equals_scipys(decimals: int) -> None:
    """Rounded values tie, and differ by zero."""
    from scipy.stats import permutation_test

    rng = np.random.default_rng(decimals)
    for n in (2, 3, 5, 8):
        a, b = rng.normal(0.5, 1, n).round(decimals), rng.normal(size=n).round(decimals)
        found = permutation_test((a, b), lambda x, y: np.mean(x - y), permutation_type="samples", n_resamples=np.inf)
        assert sign_flip(a, b).p == pytest.approx(min(1.0, found.pvalue), abs=1e-12)


def test_for_many_seeds_the_sign_flip_test_samples_patterns() -> None:
    rng = np.random.default_rng(4)
    gap = rng.normal(0.3, 1, 18)
    means = (1 - 2 * ((np.arange(2**18)[:, None] >> np.arange(18)) & 1)) @ gap / 18
    every = 2 * min(np.mean(means >= gap.mean() - 1e-12), np.mean(means <= gap.mean() + 1e-12))
    found = sign_flip(gap, np.zeros(18))
    assert found.p == pytest.approx(every, abs=0.02) and found == sign_flip(gap, np.zeros(18))
    assert sign_flip(np.ones(18), np.zeros(18)) == SeedTest(2 / 10_000, 18, 2 / 10_000)


def test_five_seeds_cannot_be_significant_on_two_sides_and_six_can() -> None:
    assert sign_flip([5.0] * 5, [1.0, 1.1, 1.2, 1.3, 1.4]).p == pytest.approx(0.0625)
    assert sign_flip([5.0] * 6, [1.0, 1.1, 1.2, 1.3, 1.4, 1.5]).p == pytest.approx(0.03125)
    assert sign_flip([5.0], [1.0]).p == 1.0


def test_the_sign_flip_test_rejects_a_true_null_at_its_level() -> None:
    rng, trials = np.random.default_rng(8), 600
    p = np.array([sign_flip(rng.normal(size=8), rng.normal(size=8)).p for _ in range(trials)])
    assert 0.025 < np.mean(p <= 0.05) < 0.075
    planted = [sign_flip(rng.normal(2.0, 1.0, 8), rng.normal(size=8)).p for _ in range(60)]
    assert np.mean(np.array(planted) <= 0.05) > 0.8


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([0.02]) == [0.02]
