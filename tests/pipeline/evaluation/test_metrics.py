"""Recall and reciprocal rank, against trec_eval and by hand."""

from __future__ import annotations

import numpy as np
import pytest
import pytrec_eval

from pipeline.evaluation.metrics import CUTOFFS, metrics_of, recall, summarize
from pipeline.evaluation.ranking import ranks


def trec(scores: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    """The oracle's R@K and MRR in percent. It breaks ties by document name, the later name first: 'a' ranks last."""
    names = [[("a" if g == t else "b") + f"{g:04d}" for g in range(scores.shape[1])] for t in targets]
    judged = {str(s): {names[s][t]: 1} for s, t in enumerate(targets)}
    run = {
        str(s): {name: float(value) for name, value in zip(names[s], row, strict=True)} for s, row in enumerate(scores)
    }
    oracle = pytrec_eval.RelevanceEvaluator(judged, {f"recall.{','.join(map(str, CUTOFFS))}", "recip_rank"})
    found = list(oracle.evaluate(run).values())
    mean = {key: 100 * float(np.mean([f[key] for f in found])) for key in found[0]}
    return {**{f"R@{k}": mean[f"recall_{k}"] for k in CUTOFFS}, "MRR": mean["recip_rank"]}


@pytest.mark.parametrize("copies", [1, 3])
def test_metrics_agree_with_trec_eval(copies: int) -> None:
    """With ``copies`` of every candidate, each target ties with two others and must rank behind them."""
    rng = np.random.default_rng(copies)
    base = rng.integers(-3, 4, size=(40, 6)).astype(np.float32)
    base[~base.any(axis=1)] = 1
    base = np.unique(base, axis=0)
    candidates = np.tile(base, (copies, 1))
    targets = rng.integers(0, len(candidates), size=60)
    queries = (candidates[targets] + rng.normal(size=(60, 6))).astype(np.float32)
    unit = base / np.linalg.norm(base, axis=1, keepdims=True)
    scores = np.tile((queries / np.linalg.norm(queries, axis=1, keepdims=True)) @ unit.T, (1, copies))
    found = metrics_of(ranks(queries, candidates, targets))
    expected = trec(scores, targets)
    assert {key: found[key] for key in expected} == pytest.approx(expected)


def test_by_hand() -> None:
    found = np.array([1, 5, 6, 8, 9, 50, 51, 2])
    assert [recall(found, k) for k in (1, 5, 8, 50)] == [12.5, 37.5, 62.5, 87.5]
    assert metrics_of(np.array([1, 2, 4]))["MRR"] == pytest.approx(100 * 1.75 / 3)
    assert metrics_of(found)["mean"] == 50


def test_overall_is_the_mean_of_the_categories_or_over_all_sessions() -> None:
    found, categories = np.array([1, 1, 1, 9, 9, 9, 9, 9]), ["dress"] * 4 + ["shirt"] * 4
    found, categories = found[:6], categories[:6]  # 3 of 4, and 0 of 2
    assert summarize(found, categories)["overall"]["R@5"] == pytest.approx(37.5)
    assert summarize(found, categories, "sessions")["overall"]["R@5"] == pytest.approx(50)
    assert [m["n"] for m in summarize(found, categories).values()] == [4, 2, 6]


def test_an_empty_category_is_shown_and_takes_no_part_in_the_mean() -> None:
    found = summarize(np.array([1, 9]), ["dress", "dress"], order=["shirt", "dress"])
    assert list(found) == ["shirt", "dress", "overall"]
    assert found["shirt"] == {"n": 0}
    assert found["overall"]["R@5"] == 50
    assert summarize(np.array([]), [], order=["dress"]) == {"dress": {"n": 0}, "overall": {"n": 0}}
