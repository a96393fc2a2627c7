"""Scores of ranked lists on CIRR and CIRCO, from the benchmarks' own annotation files.

    CIRR    cap.rc2.val.json    [{"pairid", "reference", "target_hard", "img_set": {"members": [names]}, ...}]
    CIRCO   val.json            [{"id", "reference_img_id", "target_img_id", "gt_img_ids": [ids], ...}]

As the benchmarks do, the reference image is taken out of a list. CIRR: R@K of the hard target in the whole list, and
R_subset@K among the other members of its image set. CIRCO: mAP@K over all ground truths, each divided by min(number of
ground truths, K), and R@K of the target; mAP@10 also by semantic aspect. All values are in percent.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from manifests.errors import Problems
from manifests.text import JsonError, brief, decode_text, parse_json, read_bounded
from pipeline.evaluation.metrics import PRECISION_CUTOFFS, average_precision
from pipeline.evaluation.ranked_files import Ranked, check_lists, read_ranked

CIRR_CUTOFFS, SUBSET_CUTOFFS = (1, 5, 10, 50), (1, 2, 3)
ASPECT_CUTOFF = 10  # of CIRCO, besides PRECISION_CUTOFFS
NOT_LISTED = sys.maxsize  # rank beyond every cutoff


@dataclass(frozen=True)
class Query:
    """One annotated query. ``truths``: all images that count as found; ``members``: of its image set (CIRR)."""

    reference: str
    target: str
    truths: tuple[str, ...]
    members: frozenset[str] = frozenset()
    aspects: tuple[str, ...] = ()


@dataclass(frozen=True)
class BenchmarkScore:
    """``metrics``: name -> percent. ``aspects``: CIRCO's semantic aspect -> mAP@10. ``short``: lists without their target."""

    benchmark: str
    queries: int
    metrics: Mapping[str, float]
    aspects: Mapping[str, float]
    short: int

    def as_dict(self) -> dict[str, Any]:
        return dict(vars(self))

    def text(self) -> str:
        lines = [f"{self.benchmark}, {self.queries:,} queries"]
        lines += [f"{name:16} {value:6.2f}" for name, value in self.metrics.items()]
        lines += [f"mAP@{ASPECT_CUTOFF} {name:35} {value:6.2f}" for name, value in self.aspects.items()]
        if self.short:
            lines.append(f"note: {self.short:,} lists do not name their target, which counts as not found")
        return "\n".join(lines)


def score_benchmark(ranked: Path, annotations: Path) -> BenchmarkScore:
    """Return the scores of the lists in ``ranked``. Raises ManifestError with every problem of both files."""
    problems = Problems(annotations)
    queries = read_annotations(annotations, problems)
    problems.raise_if_any()
    problems = Problems(ranked)
    given = check_lists(read_ranked(ranked, problems), queries, "query", problems)
    if missing := [name for name in queries if name not in given]:
        what = f"{len(missing):,} of {len(queries):,} queries have no list, such as {missing[0]!r}"
        problems.add("", what, "the benchmark counts every query")
    problems.raise_if_any()
    orders = {name: _order(given[name], query) for name, query in queries.items()}
    short = sum(query.target not in orders[name] for name, query in queries.items())
    if any(query.members for query in queries.values()):
        inside = {n: [i for i in orders[n] if i in q.members] for n, q in queries.items()}
        found = _recalls("R", queries, orders, CIRR_CUTOFFS) | _recalls("R_subset", queries, inside, SUBSET_CUTOFFS)
        mean = (found["R@5"] + found["R_subset@1"]) / 2
        return BenchmarkScore("CIRR", len(queries), found | {"mean": mean}, {}, short)
    precision = {}
    for name, query in queries.items():
        places = {image: rank for rank, image in enumerate(orders[name], start=1)}
        ranks = [places.get(image, NOT_LISTED) for image in query.truths]
        precision[name] = {k: average_precision(ranks, k) for k in PRECISION_CUTOFFS}
    metrics = {f"mAP@{k}": fmean(p[k] for p in precision.values()) for k in PRECISION_CUTOFFS}
    metrics |= _recalls("R", queries, orders, PRECISION_CUTOFFS)
    named = sorted({a for q in queries.values() for a in q.aspects})
    aspects = {a: fmean(precision[n][ASPECT_CUTOFF] for n, q in queries.items() if a in q.aspects) for a in named}
    return BenchmarkScore("CIRCO", len(queries), metrics, aspects, short)


def _order(ranked: Ranked, query: Query) -> list[str]:
    """Return the images, best first, without the reference; a target follows the images that tie with it."""
    places = range(len(ranked.images))
    if ranked.scores is not None:
        scores = ranked.scores
        places = sorted(places, key=lambda n: (-scores[n], ranked.images[n] in query.truths, n))  # type: ignore[assignment]
    return [ranked.images[n] for n in places if ranked.images[n] != query.reference]


def _recalls(
    name: str, queries: Mapping[str, Query], orders: Mapping[str, Sequence[str]], cutoffs: Sequence[int]
) -> dict[str, float]:
    return {f"{name}@{k}": 100 * fmean(q.target in orders[n][:k] for n, q in queries.items()) for k in cutoffs}


def read_annotations(path: Path, problems: Problems) -> dict[str, Query]:
    """Return query id -> query of an annotation file of CIRR or CIRCO, recognized by its keys."""
    try:
        records = parse_json(decode_text(read_bounded(path)))
    except (OSError, UnicodeDecodeError, JsonError) as error:
        problems.add("", f"cannot be read: {error}", "give cap.rc2.val.json of CIRR or val.json of CIRCO", file=path)
        return {}
    if not isinstance(records, list) or not records:
        problems.add("", f"found {brief(records)}", "expected a list of annotated queries", file=path)
        return {}
    found: dict[str, Query] = {}
    for index, record in enumerate(records):
        query = _query(record) if isinstance(record, dict) else None
        if query is None:
            fix = "expected pairid, reference, target_hard, img_set (CIRR), or id, reference_img_id, gt_img_ids (CIRCO)"
            problems.add(f"entry {index}", f"found {brief(record)}", f"{fix}; test files have no targets", file=path)
        elif query[0] in found:
            problems.add(f"entry {index}", f"query {query[0]!r} appears before", "ids must be unique", file=path)
        else:
            found[query[0]] = query[1]
    return found


def _query(record: Mapping[str, Any]) -> tuple[str, Query] | None:
    try:
        if "pairid" in record:
            target, members = str(record["target_hard"]), record["img_set"]["members"]
            reference = str(record["reference"])
            kept = frozenset(map(str, members)) - {reference}
            return (str(record["pairid"]), Query(reference, target, (target,), kept)) if target in kept else None
        truths = tuple(dict.fromkeys(str(i) for i in record["gt_img_ids"]))
        reference, target = str(record["reference_img_id"]), str(record["target_img_id"])
        aspects = tuple(map(str, record.get("semantic_aspects", ())))
        return (str(record["id"]), Query(reference, target, truths, frozenset(), aspects)) if truths else None
    except (KeyError, TypeError):
        return None
