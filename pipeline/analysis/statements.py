"""Intervals and significance statements for the rows of a table, from the ranks of its runs."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from manifests.table_spec import BlockSpec, ResultsTable
from pipeline.analysis.cells import Statement
from pipeline.analysis.protocol import RunSummary
from pipeline.evaluation import significance as stats
from pipeline.evaluation.evaluate import Evaluation
from pipeline.evaluation.files import load_results
from pipeline.evaluation.metrics import OVERALL

FEWEST = 20  # minimum number of sessions for a bootstrap


class _Method(NamedTuple):
    """One row: ranks of its runs on the same sessions, int [seeds, S], and one of its evaluations."""

    ranks: np.ndarray
    about: Evaluation

    def values(self, metric: str) -> np.ndarray:
        """Return the per-session values of the metric, averaged over seeds, float64 [S]."""
        return stats.session_values(self.ranks, metric).mean(axis=0)


class Resampled:
    """Bootstrap of the rows of one table. Rows whose runs name no results file get no interval and no statement."""

    def __init__(self, runs: Mapping[str, Sequence[RunSummary]], metrics: Collection[str], fixed: Collection[str] = ()):
        """Set up from ``runs`` by row; ``fixed``: rows of deterministic methods, with one run for all seeds."""
        self.runs, self.metrics, self.fixed = runs, tuple(dict.fromkeys(metrics)), fixed
        self._draws: dict[str, dict[tuple[str, str, str], np.ndarray]] = {}

    @cached_property
    def methods(self) -> dict[str, _Method]:
        found = {}
        for name, runs in self.runs.items():
            if runs and all(run.results and Path(run.results).is_file() for run in runs):
                all_runs = [load_results(Path(run.results)) for run in runs]
                if len({e.session_ids for e in all_runs}) == 1:
                    found[name] = _Method(np.stack([e.ranks for e in all_runs]), all_runs[0])
        return found

    def interval(self, row: str, subset: str, category: str, metric: str) -> tuple[float, float] | None:
        """Return the 95% interval of a cell's mean over seeds, or None."""
        drawn = self._drawn(subset).get((row, category, metric))
        return None if drawn is None else stats.interval(drawn)

    def _drawn(self, subset: str) -> dict[tuple[str, str, str], np.ndarray]:
        """Return resampled values [resamples] by (row, category or "overall", metric).

        Rows over the same sessions and all metrics share their draws, so their differences are paired.
        """
        if subset not in self._draws:
            together: dict[tuple[str, ...], list[str]] = {}
            for name, method in self.methods.items():
                if subset in method.about.subsets and method.about.subsets[subset].any():
                    together.setdefault(method.about.session_ids, []).append(name)
            self._draws[subset] = {}
            for names in together.values():
                self._draws[subset] |= self._draw(names, subset)
        return self._draws[subset]

    def _draw(self, names: Sequence[str], subset: str) -> dict[tuple[str, str, str], np.ndarray]:
        about = self.methods[names[0]].about
        member = about.subsets[subset]
        labels = np.array(about.categories, dtype=object)[member]
        columns = [(name, metric) for name in names for metric in self.metrics]
        values = np.stack([self.methods[name].values(metric)[member] for name, metric in columns], axis=1)
        names_of = dict.fromkeys(labels.tolist())
        parts = {c: stats.bootstrap(values, [np.flatnonzero(labels == c)], seed=n) for n, c in enumerate(names_of)}
        if about.averaging == "categories":
            parts[OVERALL] = np.mean(list(parts.values()), axis=0)
        else:
            parts[OVERALL] = stats.bootstrap(values, [np.arange(len(values))])
        return {(name, c, m): drawn[:, n] for c, drawn in parts.items() for n, (name, m) in enumerate(columns)}

    def statements(self, spec: ResultsTable, labels: Mapping[str, str]) -> tuple[str, tuple[Statement, ...]]:
        """Return (test description, statements): per block, the tested row against the others, then each comparison.

        p values are Holm-corrected within the tests of one row on one block.
        """
        apart = {one.tested for one in spec.comparisons} - {spec.tested}
        families = [(spec.tested, spec.against or tuple(name for name in labels if name not in apart))]
        families += [(one.tested, one.against) for one in spec.comparisons]
        made: list[Statement] = []
        for tested, against in families:
            for block in spec.blocks if tested in labels else ():
                made += self._family(spec, block, tested, against, labels)
        metric = "the mean of R@5 and R@8" if spec.tested_metric == "mean" else spec.tested_metric
        how = (
            f"Differences of {metric}, overall, in points with 95% intervals. Over sessions: paired bootstrap, "
            f"{stats.RESAMPLES:,} resamples of whole sessions within what is averaged, Holm-corrected over the comparisons of "
            f"a block. Over seeds: exact paired sign-flip test. Both two-sided; significant: p < {stats.ALPHA} in both. Fewer "
            f"than {FEWEST} sessions are not tested."
        )
        return how, tuple(made)

    def _family(
        self, spec: ResultsTable, block: BlockSpec, tested: str, against: Sequence[str], labels: Mapping[str, str]
    ) -> list[Statement]:
        """Return the tests of one row against others on one block, Holm-corrected together."""
        others = [name for name in labels if name in against and name != tested]
        found = {other: self._compare(tested, other, block.subset, spec.tested_metric) for other in others}
        present = {other: facts for other, facts in found.items() if facts}
        made, corrected = [], stats.holm([f["p_sessions"] for f in present.values()])
        for (other, facts), p in zip(present.items(), corrected, strict=True):
            over, least = facts["p_seeds"], facts["least_p_seeds"]
            facts |= {"block": block.label, "metric": spec.tested_metric, "a": labels[tested], "b": labels[other]}
            facts |= {"p_holm": p, "significant": p < stats.ALPHA and (over is None or over < stats.ALPHA)}
            facts |= {"seeds_allow": not (p < stats.ALPHA and least is not None and least >= stats.ALPHA)}
            made.append(Statement(**facts))
        return made

    def _compare(self, a: str, b: str, subset: str, metric: str) -> dict[str, Any] | None:
        first, second = self.methods.get(a), self.methods.get(b)
        if first is None or second is None or not {subset} <= first.about.subsets.keys() & second.about.subsets.keys():
            return None
        one, other = first.about.session_ids, second.about.session_ids
        place = {i: n for n, i in enumerate(other)}  # compare only sessions that both ranked
        mine = [n for n, i in enumerate(one) if i in place and first.about.subsets[subset][n]]
        if len(mine) < FEWEST or second.about.subsets[subset].sum() < FEWEST:
            return None
        gap = first.values(metric)[mine] - second.values(metric)[[place[one[n]] for n in mine]]
        labels = np.array(first.about.categories, dtype=object)[mine].tolist()
        strata = stats.strata_of(labels, first.about.averaging)
        if one == other:
            drawn = self._drawn(subset)
            resampled = drawn[a, OVERALL, metric] - drawn[b, OVERALL, metric]
        else:
            resampled = stats.bootstrap(gap[:, None], strata)[:, 0]
        found = stats.difference(float(np.mean([gap[m].mean() for m in strata])), resampled)
        # the run of a deterministic method is paired with every seed of the other
        by_seed = [{run.seed: run.value(subset, OVERALL, metric) for run in self.runs[n]} for n in (a, b)]
        test = stats.seed_test(by_seed[0], by_seed[1], (a in self.fixed, b in self.fixed))
        seeds = {"seeds": test.n, "p_seeds": test.p, "least_p_seeds": test.least} if test else {}
        facts = {"difference": found.value, "low": found.low, "high": found.high, "p_sessions": found.p}
        return {"p_seeds": None, "least_p_seeds": None, **facts, **seeds, "sessions": len(gap)}
