"""Evaluation of a ranked list that another system made, with the sessions, galleries and leak subsets of a dataset."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from manifests.errors import ManifestError, Problem, Problems, nearest
from manifests.leaks import subset_ids
from manifests.schema import Dataset
from pipeline.evaluation.evaluate import ALL, Evaluation
from pipeline.evaluation.ranked_files import Ranked, check_lists, read_ranked

_SHOWN = 20  # problems listed; the rest is counted


def evaluate_ranked(path: Path, dataset: Dataset, partial: bool = False) -> tuple[Evaluation, int]:
    """Return the evaluation of the ranked lists in ``path`` over the test sessions of ``dataset``, and the number of
    lists that do not name their target.

    Such a target has the last rank of its gallery. Ties by score count against the target. ``partial``: sessions without a list are skipped. Raises ManifestError with every problem: unknown or repeated ids,
    images outside of the session's gallery, missing sessions.
    """
    problems = Problems(path)
    lists = read_ranked(path, problems)
    _check(lists, dataset, partial, problems)
    if len(problems.found) > _SHOWN:
        more = Problem(str(path), "", f"{len(problems.found) - _SHOWN:,} more problems", "correct these first")
        raise ManifestError([*problems.found[:_SHOWN], more])
    problems.raise_if_any()
    by_session = {ranked.session: ranked for ranked in lists}
    sessions = [s for s in dataset.split("test") if s.id in by_session]
    if not sessions:
        raise ManifestError([Problem(str(path), "", "no list of a test session", "give one list per session")])
    sizes = {g.category: len(g.images) for g in dataset.galleries if g.split == "test"}
    ranks = [_rank(by_session[s.id], s.target, sizes[s.category]) for s in sessions]
    ids = tuple(s.id for s in sessions)
    missing = [s.id for s in dataset.split("test") if s.id not in by_session]
    subsets = subset_ids(dataset).items()
    evaluation = Evaluation(
        session_ids=ids,
        categories=tuple(s.category for s in sessions),
        target_ids=tuple(s.target for s in sessions),
        ranks=np.array(ranks, dtype=np.int64),
        averaging=dataset.averaging,
        subsets={name: np.array([name == ALL or i in found for i in ids]) for name, found in subsets},
        galleries={name: {"images": size, "dropped": []} for name, size in sizes.items()},
        skipped=dict.fromkeys(missing, "the ranked list does not have it"),
    )
    return evaluation, sum(s.target not in by_session[s.id].images for s in sessions)


def _rank(ranked: Ranked, target: str, size: int) -> int:
    if target not in ranked.images:
        return size
    place = ranked.images.index(target)
    if ranked.scores is None:
        return place + 1
    return sum(score >= ranked.scores[place] for score in ranked.scores)


def _check(lists: Sequence[Ranked], dataset: Dataset, partial: bool, problems: Problems) -> None:
    sessions = {s.id: s for s in dataset.split("test")}
    galleries = {g.category: frozenset(g.images) for g in dataset.galleries if g.split == "test"}
    found = check_lists(lists, sessions, "test session", problems)
    for name, ranked in found.items():
        gallery = galleries[category := sessions[name].category]
        if unknown := [image for image in ranked.images if image not in gallery]:
            what = f"session {name!r}: {len(unknown)} images are not in the gallery of {category!r}"
            problems.add(ranked.place, f"{what}, such as {unknown[0]!r}", nearest(unknown[0], gallery))
    missing = [name for name in sessions if name not in found]
    if missing and not partial and not problems.found:
        what = f"{len(missing):,} of {len(sessions):,} test sessions have no list, such as {missing[0]!r}"
        problems.add("", what, "add them, or score the others with --partial")
