"""Statements under a table: from ranks on disk, with the tests' own limits told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from manifests.table_spec import ResultsTable, parse_table_spec
from pipeline.analysis.cells import Table
from pipeline.analysis.render import render
from pipeline.analysis.results_table import build_results_table
from pipeline.evaluation.evaluate import Evaluation
from pipeline.evaluation.files import save_results

SESSIONS = 120


def results(path: Path, hits: np.ndarray, sessions: int = SESSIONS) -> Evaluation:
    """Rank 1 where hit, else 50; 20 sessions are in "few", 10 in "fewer"."""
    evaluation = Evaluation(
        session_ids=tuple(f"s{n}" for n in range(sessions)),
        categories=("dress", "shirt") * (sessions // 2),
        target_ids=("t",) * sessions,
        ranks=np.where(hits[:sessions], 1, 50),
        averaging="categories",
        subsets={"all": np.ones(sessions, bool), "few": np.arange(sessions) < 20, "fewer": np.arange(sessions) < 10},
        galleries={},
        skipped={},
    )
    save_results(path, evaluation)
    return evaluation


@pytest.fixture
def build(tmp_path: Path, summary: Callable[..., dict[str, Any]]) -> Callable[..., Table]:
    def make(rows: dict[str, list[np.ndarray]], sessions: dict[str, int] | None = None) -> Table:
        spec = parse_table_spec(
            {
                "kind": "results",
                "title": "T",
                "run": "r",
                "tested": "cm_ntm",
                "seeds": list(range(6)),
                "columns": [{"category": "overall", "label": "Overall", "metrics": ["R@5", "mean"]}],
                "blocks": [{"subset": name, "label": name} for name in ("all", "few", "fewer")],
                "rows": [
                    {"model": name, "label": name, "deterministic": len(hits) == 1} for name, hits in rows.items()
                ],
            },
            "t.toml",
        )
        assert isinstance(spec, ResultsTable)
        made: dict[str, list[dict[str, Any]]] = {}
        for name, hits in rows.items():
            for seed, one in enumerate(hits):
                path = tmp_path / f"{name}{seed}.h5"
                evaluation = results(path, one, (sessions or {}).get(name, SESSIONS))
                facts = {"metrics": evaluation.metrics(), "results": str(path)}
                made.setdefault(name, []).append(summary(name, seed, 0.0, **facts))
        return build_results_table(spec, lambda row, seeds: [s for s in made[row.model] if s["seed"] in seeds])

    return make


def noisy(base: np.ndarray, seed: int, share: float) -> np.ndarray:
    """``base`` with this share of the sessions drawn anew."""
    rng = np.random.default_rng(seed)
    return np.where(rng.random(SESSIONS) < share, rng.random(SESSIONS) < base.mean(), base)


def test_a_better_model_is_significant_and_an_equal_one_is_not(build: Callable[..., Table]) -> None:
    base = np.random.default_rng(0).random(SESSIONS) < 0.4
    better = base | (np.random.default_rng(1).random(SESSIONS) < 0.3)
    table = build(
        {
            "avg": [base],
            "cm_ntm": [noisy(better, n, 0.1) for n in range(6)],
            "lstm": [noisy(better, n + 50, 0.1) for n in range(6)],
        }
    )
    found = {(s.block, s.b): s for s in table.statements}
    assert set(found) == {("all", "avg"), ("all", "lstm"), ("few", "avg"), ("few", "lstm")}  # 10 are too few to test
    won, drawn = found["all", "avg"], found["all", "lstm"]
    assert won.significant and won.p_seeds == pytest.approx(2 / 64) and won.low > 0 and won.sessions == SESSIONS
    assert "over 120 sessions p" in won.text and "over 6 seeds p = 0.031: significant." in won.text
    # these seeds differ by more than these sessions can blame on chance; other seeds need not: both tests must agree
    assert not drawn.significant and drawn.p_seeds == 0.25 and drawn.p_holm >= drawn.p_sessions
    text = render(table, "md")
    assert "all: cm\\_ntm - avg: +" in text and "Fewer than 20 sessions are not tested" in text
    assert "95% intervals over sessions, all" in text


def test_too_few_seeds_are_told_from_no_difference(build: Callable[..., Table]) -> None:
    base = np.random.default_rng(0).random(SESSIONS) < 0.3
    better = base | (np.random.default_rng(1).random(SESSIONS) < 0.4)
    table = build({"avg": [base], "cm_ntm": [noisy(better, n, 0.05) for n in range(3)]})
    statement = table.statements[0]
    assert not statement.significant and statement.least_p_seeds == 0.25
    assert statement.text.endswith("undecided: too few seeds for the test over seeds.")


def test_only_common_sessions_are_compared(build: Callable[..., Table]) -> None:
    base = np.random.default_rng(0).random(SESSIONS) < 0.4
    table = build({"cat": [base], "cm_ntm": [base]}, sessions={"cat": 100})
    statement = next(s for s in table.statements if s.block == "all")
    assert (statement.sessions, statement.difference, statement.p_sessions) == (100, 0.0, 1.0)
    assert statement.p_seeds is None and "seed" not in statement.text
