"""Exact search against a plain sort."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.training.errors import FeatureError
from pipeline.views.retrieval.index import ExactIndex


def by_sorting(features: np.ndarray, query: np.ndarray, k: int) -> list[int]:
    norms = np.linalg.norm(features.astype(np.float64), axis=1, keepdims=True)
    unit = np.divide(features, norms, out=np.zeros(features.shape), where=norms > 0).astype(np.float32)
    scores = unit @ (query / np.linalg.norm(query)).astype(np.float32)
    return sorted(range(len(scores)), key=lambda row: (-scores[row], row))[:k]


@settings(max_examples=60, deadline=None)
@given(
    size=st.integers(1, 40),
    dim=st.integers(1, 6),
    k=st.integers(1, 50),
    block=st.integers(1, 60),
    seed=st.integers(0, 99),
)
def test_search_equals_a_sort_whatever_the_block(size: int, dim: int, k: int, block: int, seed: int) -> None:
    # whole numbers: scores tie often, and every product is exact up to the same rounding
    features = np.random.default_rng(seed).integers(-1, 2, (size, dim)).astype(np.float32)
    query = np.zeros(dim, dtype=np.float32)
    query[0] = 1.0
    hits = ExactIndex(features, block=block).search(torch.from_numpy(query), k)
    assert hits.rows.shape == hits.scores.shape == (1, min(k, size))
    assert hits.rows[0].tolist() == by_sorting(features, query, k)


def test_many_queries_at_once_are_each_answered_alone() -> None:
    rng = np.random.default_rng(0)
    features, queries = rng.normal(size=(300, 8)), rng.normal(size=(20, 8))
    index = ExactIndex(features, block=640)
    together = index.search(torch.from_numpy(queries), 7)
    for number, query in enumerate(queries):
        assert together.rows[number].tolist() == by_sorting(features, query, 7)
    assert torch.allclose(index.scores(torch.from_numpy(queries)).gather(1, together.rows), together.scores, atol=1e-6)


@pytest.mark.parametrize(
    ("query", "k", "said"),
    [
        (torch.ones(3), 1, r"\[5, 4\]"),
        (torch.full((4,), torch.nan), 1, "NaN"),
        (torch.ones(4), 0, "k = 0"),
        (torch.ones(0, 4), 1, "shape"),
    ],
)
def test_a_query_that_does_not_fit_is_refused(query: torch.Tensor, k: int, said: str) -> None:
    with pytest.raises(FeatureError, match=said):
        ExactIndex(np.ones((5, 4))).search(query, k)


def test_an_empty_gallery_is_refused() -> None:
    with pytest.raises(FeatureError, match="extract the gallery"):
        ExactIndex(np.ones((0, 4)))
