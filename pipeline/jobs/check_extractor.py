"""Known-score check: single-turn retrieval with a spec's extractor and composer, compared with published values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from manifests.errors import IncompleteError
from manifests.leaks import subset_ids
from manifests.one_turn import one_turn_sessions
from manifests.schema import OVERALL, Component, Dataset, RunSpec
from pipeline.core.text_table import aligned
from pipeline.evaluation.evaluate import evaluate, load_candidates
from pipeline.evaluation.metrics import summarize
from pipeline.evaluation.ranked_files import ranked_lists, write_ranked
from pipeline.extraction.extractors import extractors
from pipeline.extraction.extractors._cards import preset
from pipeline.jobs.experiment import Experiment

CUTOFFS = (10, 50)
METRICS = ("R@10", "R@50", "mean")  # mean of the two
LISTED = 5000  # candidates of a ranked list


@dataclass(frozen=True)
class Score:
    """Single-turn score under one protocol. ``values``: category or "overall" -> R@10, R@50, mean and n, in percent.

    ``published``: metric -> published overall value. ``unseen``: overall values without pairs of the train sessions.
    """

    protocol: str
    values: Mapping[str, Mapping[str, float]]
    galleries: Mapping[str, int]
    outside: int
    skipped: int
    tolerance: float
    published: Mapping[str, float] = field(default_factory=dict)
    unseen: Mapping[str, float] = field(default_factory=dict)

    @property
    def differences(self) -> dict[str, float]:
        """Return metric -> ours - published, in points."""
        return {m: self.values[OVERALL][m] - value for m, value in self.published.items()}

    @property
    def warnings(self) -> list[str]:
        what, most = f"warning: {self.protocol}", f"more than {self.tolerance:g}"
        large = {m: gap for m, gap in self.differences.items() if not abs(gap) <= self.tolerance}  # nan accepts nothing
        return [f"{what}: {m} differs from the published value by {gap:+.1f}, {most}" for m, gap in large.items()]

    def as_dict(self) -> dict[str, Any]:
        return {**vars(self), "differences": self.differences, "warnings": self.warnings}

    def text(self) -> str:
        rows: list[tuple[str, ...]] = [("", *METRICS, "queries", "gallery")]
        for name, found in self.values.items():
            size = sum(self.galleries.values()) if name == OVERALL else self.galleries.get(name, 0)
            rows.append((name, *(_shown(found.get(m)) for m in METRICS), f"{found['n']:,.0f}", f"{size:,}"))
        if self.unseen:
            scores = (_shown(self.unseen.get(m)) for m in METRICS)
            rows.append(("overall, pairs unseen", *scores, f"{self.unseen['n']:,.0f}", ""))
        if self.published:
            gaps = self.differences
            rows.append(("published", *(_shown(self.published.get(m)) for m in METRICS), "", ""))
            rows.append(("ours - published", *(f"{gaps[m]:+.1f}" if m in gaps else "" for m in METRICS), "", ""))
        lines = [self.protocol, *aligned(rows)]
        if not self.published:
            lines.append("no published value: give one with --published R@10=VALUE")
        if self.outside:
            lines.append(f"{self.outside:,} turns are left out: no reference image, or a target outside of the gallery")
        if self.skipped:
            lines.append(f"{self.skipped:,} queries are left out: a feature is missing")
        return "\n".join([*lines, *self.warnings])


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def protocols(spec: RunSpec) -> dict[str, RunSpec]:
    """Return protocol name -> spec: both galleries of FashionIQ, else the dataset as it is with one-turn queries."""
    if spec.dataset.name != "fashioniq":
        return {f"{spec.dataset.name}, one-turn queries of the test sessions": spec}
    made = {}
    for gallery in ("original", "val"):
        dataset = Component(**{**spec.dataset.options, "name": "fashioniq", "gallery": gallery})
        made[f"fashioniq, {gallery} protocol"] = spec.model_copy(update={"dataset": dataset})
    return made


def published_values(spec: RunSpec, protocol: str) -> Mapping[str, float]:
    """Return the published overall values of the model's card under ``protocol``; {} if there are none."""
    family = extractors.get(spec.extractor.name)
    card = preset(family.cards, str(spec.extractor.options.get("model", "")))
    return card.published.get(protocol, {}) if card else {}


def score(
    experiment: Experiment,
    dataset: Dataset,
    protocol: str,
    published: Mapping[str, float],
    tolerance: float,
    to: Path | None = None,
) -> Score:
    """Rank the one-turn queries of ``dataset``'s test sessions with the features of ``experiment``.

    ``dataset``: that of the experiment, or the same with other galleries. ``to``: folder for the ranked lists, as JSON lines
    of up to ``LISTED`` candidates. Raises IncompleteError without any query.
    """
    sessions, outside = one_turn_sessions(dataset)
    if not sessions:
        raise IncompleteError(f"dataset '{dataset.name}' has no test query whose target is in its gallery")
    features = experiment.features(sessions)
    queries = features.queries[features.query_rows[:, 0]].cpu().numpy()
    single = dataset.model_copy(update={"sessions": (*dataset.split("train"), *sessions)})
    clean = {"unseen": subset_ids(single)["no pair seen"]}
    candidates = load_candidates(experiment.store, [g for g in dataset.galleries if g.split == "test"])
    found = evaluate(queries, features.sessions, candidates, clean, dataset.averaging)
    if to is not None:
        to.mkdir(parents=True, exist_ok=True)
        name = protocol.split(" protocol")[0].replace(", ", "-").replace(" ", "-")
        lists = ranked_lists(queries, features.sessions, candidates, LISTED)
        write_ranked(to / f"{name}.jsonl", "jsonl", (ranked for ranked, _ in lists), "")
    kept = found.subsets["unseen"]
    unseen: dict[str, float] = {}
    if 0 < int(kept.sum()) < len(kept):
        labels = [c for c, keep in zip(found.categories, kept, strict=True) if keep]
        unseen = _means(summarize(found.ranks[kept], labels, dataset.averaging, cutoffs=CUTOFFS))[OVERALL]
    return Score(
        protocol=protocol,
        values=_means(summarize(found.ranks, found.categories, dataset.averaging, found.galleries, CUTOFFS)),
        galleries={name: facts["images"] for name, facts in found.galleries.items()},
        outside=outside,
        skipped=len(features.skipped) + len(found.skipped),
        tolerance=tolerance,
        published=published,
        unseen=unseen,
    )


def _means(metrics: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Return R@10, R@50, their mean and n of each category with sessions."""
    return {
        name: {**{f"R@{k}": m[f"R@{k}"] for k in CUTOFFS}, "mean": (m["R@10"] + m["R@50"]) / 2, "n": m["n"]}
        for name, m in metrics.items()
        if m["n"]
    }
