"""Comparison of two methods: the changes by size, and what cannot be compared."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pipeline.analysis.compare import CompareError, Method, compare, to_text
from pipeline.evaluation.evaluate import Evaluation


def evaluation(ranks: list[int], names: str = "abcd") -> Evaluation:
    return Evaluation(
        session_ids=tuple(names),
        categories=("x", "x", "y", "y")[: len(names)],
        target_ids=tuple(names.upper()),
        ranks=np.array(ranks),
        averaging="categories",
        subsets={"all": np.ones(len(names), bool), "no pair seen": np.array([True, False, True, True])[: len(names)]},
        galleries={"x": {"images": 100, "dropped": []}, "y": {"images": 90, "dropped": []}},
        skipped={},
    )


def method(*ranks: list[int], fixed: bool = False) -> Method:
    seeds = (None,) if fixed else tuple(range(len(ranks)))
    return Method("m", tuple(f"run{n}" for n in range(len(ranks))), seeds, tuple(map(evaluation, ranks)))


def test_changes_are_ordered_by_their_factor() -> None:
    found = compare(method([10, 5, 100, 1], fixed=True), method([1, 5, 50, 100], fixed=True))
    assert [(c.session, c.target) for c in found.nearer] == [("a", "A"), ("c", "C")]
    assert [(c.a, c.b) for c in found.nearer] == [pytest.approx((10, 1)), pytest.approx((100, 50))]
    assert [c.session for c in found.further] == ["d"]
    assert found.counts == (2, 1, 1)
    line = next(x for x in found.lines if (x.subset, x.metric) == ("all", "R@5"))
    assert (line.a, line.b, line.difference, line.sessions) == (50.0, 50.0, 0.0, 4)
    assert line.p_seeds is None
    subset = next(x for x in found.lines if (x.subset, x.metric) == ("no pair seen", "R@5"))
    assert (subset.sessions, subset.a, subset.b) == (3, 25.0, 50.0)


def test_ranks_of_several_seeds_are_averaged_in_the_logarithm() -> None:
    found = compare(method([1, 1, 1, 1], fixed=True), method([1, 1, 1, 4], [1, 1, 1, 100]))
    (change,) = found.further
    assert change.b == pytest.approx(20.0) and change.a == pytest.approx(1.0)
    line = next(x for x in found.lines if (x.subset, x.metric) == ("all", "R@5"))
    assert line.difference == pytest.approx(-12.5) and line.least_p_seeds == 0.5
    assert "this number of seeds gives no p below 0.500" in to_text(found)


def test_a_subset_that_leaves_no_session_out_is_not_tested_twice() -> None:
    """Holm's correction counts comparisons: the same sessions under two names are one."""
    every = {
        "all": np.ones(4, bool),
        "last pair unseen": np.ones(4, bool),
        "no pair seen": np.array([True, False, True, True]),
    }
    alone = compare(method([9, 5, 8, 1]), method([1, 2, 3, 4]))
    again = replace(method([9, 5, 8, 1]), evaluations=(replace(evaluation([9, 5, 8, 1]), subsets=every),))
    found = compare(again, method([1, 2, 3, 4]))
    assert list(dict.fromkeys(line.subset for line in found.lines)) == ["all", "no pair seen"]
    assert [line.p_holm for line in found.lines] == [line.p_holm for line in alone.lines]


def test_only_common_sessions_count_and_others_are_counted() -> None:
    short = replace(method([1, 1, 1, 1]), evaluations=(evaluation([2, 2, 2], "abc"),))
    found = compare(method([1, 1, 1, 1]), short)
    assert (found.sessions, found.only_one) == (3, 1)
    assert "1 sessions that only one of them ranked" in to_text(found)


def test_what_cannot_be_compared() -> None:
    other = replace(method([1, 1, 1, 1]), evaluations=(evaluation([1, 1, 1, 1], "wxyz"),))
    with pytest.raises(CompareError, match="no session in common"):
        compare(method([1, 1, 1, 1]), other)
    small = evaluation([1, 1, 1, 1])
    small.galleries["x"]["images"] = 7
    with pytest.raises(CompareError, match="galleries of different sizes"):
        compare(method([1, 1, 1, 1]), replace(method([1, 1, 1, 1]), evaluations=(small,)))
