"""Uncertainty of recall: paired bootstrap over sessions, exact sign-flip test over seeds, Holm's correction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from pipeline.evaluation.metrics import Averaging

RESAMPLES = 10_000
LEVEL = 0.95
ALPHA = 0.05
_EXACT_UP_TO = 16  # pairs: 65,536 sign patterns; for more pairs, 9,999 random ones and the given one
_HELD = 1 << 23  # resampled positions in memory at once


class Difference(NamedTuple):
    """Mean difference a - b, its interval, and the two-sided bootstrap p value of "no difference"."""

    value: float
    low: float
    high: float
    p: float


class SeedTest(NamedTuple):
    """Two-sided p value of the sign-flip test over ``n`` seeds. ``least``: smallest possible p value for n seeds."""

    p: float
    n: int
    least: float


def session_values(ranks: np.ndarray, metric: str) -> np.ndarray:
    """Return the per-session values of a metric in percent: ranks int [S] -> float64 [S], whose mean is the metric."""
    if metric == "mean":
        return 50.0 * ((ranks <= 5).astype(np.float64) + (ranks <= 8))
    if metric == "MRR":
        return 100.0 / ranks
    return 100.0 * (ranks <= int(metric.removeprefix("R@")))


def strata_of(categories: Sequence[str], averaging: Averaging) -> list[np.ndarray]:
    """Return the session indices of each stratum: one stratum per category, or one of all sessions."""
    labels = np.asarray(categories, dtype=object)
    if averaging == "sessions":
        return [np.arange(len(labels))]
    return [np.flatnonzero(labels == name) for name in dict.fromkeys(categories)]


def bootstrap(
    values: np.ndarray, strata: Sequence[np.ndarray], resamples: int = RESAMPLES, seed: int = 0
) -> np.ndarray:
    """Return resampled means of the columns: values [S, K] -> float64 [resamples, K].

    Every stratum is resampled from its own sessions, and the means of the strata are averaged. All columns share the
    draws, so the difference of two columns is a paired bootstrap of their difference.
    """
    rng = np.random.default_rng(seed)
    out = np.zeros((resamples, values.shape[1]))
    for members in strata:
        part = np.asarray(values, dtype=np.float64)[members]
        size = len(part)
        step = max(1, _HELD // size)
        for start in range(0, resamples, step):
            rows = min(step, resamples - start)
            drawn = rng.integers(0, size, (rows, size)) + size * np.arange(rows)[:, None]
            times = np.bincount(drawn.ravel(), minlength=rows * size).reshape(rows, size).astype(np.float64)
            out[start : start + rows] += times @ part / size
    return out / len(strata)


def interval(draws: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def difference(value: float, draws: np.ndarray) -> Difference:
    """Return ``value`` (a - b as measured) with the interval and p value of its resampled values [resamples]."""
    n = len(draws)
    tails = (np.sum(draws <= 0) + 1) / (n + 1), (np.sum(draws >= 0) + 1) / (n + 1)
    return Difference(value, *interval(draws), p=float(min(1.0, 2 * min(tails))))


def sign_flip(a: Sequence[float], b: Sequence[float]) -> SeedTest:
    """Test equal means over seeds by exact paired permutation: each pair may be swapped. a, b: [n], by seed.

    For a deterministic method, repeat its value n times. Above 16 pairs, 9,999 random permutations are sampled.
    """
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    n = len(first)
    if n <= _EXACT_UP_TO:
        swapped = (np.arange(2**n)[:, None] >> np.arange(n)) & 1
    else:
        swapped = np.random.default_rng(0).integers(0, 2, (10_000, n))
        swapped[0] = 0
    means = (1.0 - 2.0 * swapped) @ (first - second) / n
    slack = 100 * np.finfo(np.float64).eps * abs(means[0])  # the first pattern swaps nothing
    tails = np.mean(means >= means[0] - slack), np.mean(means <= means[0] + slack)
    return SeedTest(float(min(1.0, 2 * min(tails))), n, min(1.0, 2 / len(means)))


def seed_test(
    a: Mapping[int | None, float | None], b: Mapping[int | None, float | None], fixed: Sequence[bool]
) -> SeedTest | None:
    """Test equal means of two methods from their values by seed, or return None if there is nothing to pair.

    ``fixed``: whether each method is deterministic: its one value is paired with every seed of the other.
    """
    if all(fixed):
        return None
    known = set(b) if fixed[0] else set(a) if fixed[1] else set(a) & set(b)
    seeds = sorted(seed for seed in known if seed is not None)
    first, second = (
        [next(iter(values.values())) if one else values[seed] for seed in seeds]
        for values, one in zip((a, b), fixed, strict=True)
    )
    return sign_flip(first, second) if seeds and None not in (*first, *second) else None  # type: ignore[arg-type]


def holm(p: Sequence[float]) -> list[float]:
    """Return p values adjusted by Holm's step-down correction, in the given order (Holm 1979)."""
    values = np.asarray(p, dtype=np.float64)
    order = np.argsort(values, kind="stable")
    stepped = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1))
    out = np.empty_like(values)
    out[order] = np.minimum(stepped, 1.0)
    return out.tolist()
