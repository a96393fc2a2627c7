"""Measure memory retention (paper Figure 5): do the final results still satisfy the requests of earlier turns?

Exact when the dataset records the requests (``known_requests``). Otherwise the text tower scores the results: the percentile
of the retrieved images in the gallery ranked by one earlier feedback alone (50 is chance, 100 the best match).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np

from cache import Store
from manifests.datasets.demo import DemoOptions, catalogue_of
from manifests.identity import stack_keys, text_key
from manifests.schema import Dataset, RunSpec
from pipeline.evaluation.ranking import unit_rows
from pipeline.views.retrieval.testbed import TestBed, rows_or_zeros
from pipeline.views.retrieval.trained import Trained

CHANCE = "any gallery image"
Z95 = 1.96
Request = dict[str, str]  # field -> requested value; "none" requests its absence


@dataclass(frozen=True)
class Mean:
    """Mean over n sessions with the half width of its 95% interval (normal approximation)."""

    value: float
    half: float
    n: int


@dataclass
class MeasureTable:
    """Table of a measure. ``how``: one sentence on it; ``rows``: label -> column -> mean; ``why_not``: reason for none."""

    how: str
    columns: tuple[str, ...]
    sessions: int = 0
    unit: str = ""
    rows: dict[str, dict[str, Mean]] = field(default_factory=dict)
    why_not: str = ""
    examples: dict[str, Any] = field(default_factory=dict)  # by model label


def mean_of(values: Sequence[float] | np.ndarray) -> Mean:
    """Return the mean and its interval. Raises ValueError for an empty sequence."""
    found = np.asarray(values, dtype=np.float64)
    if not len(found):
        raise ValueError("no sessions: a mean over none does not exist")
    half = Z95 * float(found.std(ddof=1)) / len(found) ** 0.5 if len(found) > 1 else 0.0
    return Mean(float(found.mean()), half, len(found))


def known_requests(spec: RunSpec) -> dict[str, tuple[Request, ...]] | None:
    """Return session id -> the requests of its turns; None when only the words are known.

    The demo's users are generated, so their requests are known: the same options give the same sessions.
    """
    if spec.dataset.name != "demo":
        return None
    catalogue = catalogue_of(DemoOptions.model_validate(spec.dataset.options))
    return {name: story.requests for name, story in catalogue.stories.items()}


def meets(dataset: Dataset, image: str, request: Request) -> bool:
    found = {name: dataset.attributes.get(image, {}).get(name, ()) for name in request}
    return all(value in found[name] if value != "none" else not found[name] for name, value in request.items())


def exact_retention(
    bed: TestBed, models: Sequence[Trained], requests: Mapping[str, Sequence[Request]], k: int
) -> MeasureTable:
    """Return the share of the final top k with the requested values, averaged over sessions of two turns or more."""
    dataset = bed.experiment.dataset

    @cache
    def having(category: str, item: tuple[str, str]) -> np.ndarray:
        """Return a mask of the gallery images that have one requested value: bool [G]."""
        return np.array([meets(dataset, image, dict([item])) for image in bed.candidates[category].images])

    mine = [n for n, s in enumerate(bed.sessions) if len(s.turns) > 1 and s.id in requests]
    turns = max((len(bed.sessions[n].turns) for n in mine), default=0)
    columns = ("top-1: all earlier", f"top-{k}: all earlier", *(_ago(n) for n in range(1, turns)), "newest feedback")
    how = "Share of the final results that have every value that earlier turns asked for;"
    ago = f'columns "... ago" look at one earlier turn, in the top {k}.'
    exact = "Exact: the dataset knows what each turn asked for."
    out = MeasureTable(f"{how} {ago} {exact}", columns, len(mine), "%")
    if not mine:
        out.why_not = "no test session of two turns or more has known requests"
        return out
    met: dict[int, np.ndarray] = {}  # session -> [turns, G]: mask of the gallery images that satisfy a turn's request
    for n in mine:
        session = bed.sessions[n]
        wishes = [[having(session.category, item) for item in r.items()] for r in requests[session.id]]
        met[n] = np.stack([np.all(wish, axis=0) for wish in wishes])

    def measure(rows_of: Mapping[int, np.ndarray]) -> dict[str, Mean]:
        found: dict[str, list[float]] = defaultdict(list)
        for n in mine:
            by_turn = met[n][:, rows_of[n]]
            early: np.ndarray = np.all(by_turn[:-1], axis=0)
            for name, share in zip(columns, (early[0], early.mean()), strict=False):
                found[name].append(float(share))
            for ago, share in enumerate(by_turn[::-1].mean(1)):
                found[_ago(ago)].append(float(share))
        return {name: mean_of(100 * np.array(values)) for name, values in found.items()}

    for trained in models:
        top = bed.top(bed.finals(trained), k)
        out.rows[trained.label] = measure({n: top[n][top[n] >= 0] for n in mine})
    chance = measure({n: np.arange(met[n].shape[1]) for n in mine})
    chance[columns[0]] = chance[columns[1]]  # the first image of a gallery is not a random draw
    out.rows[CHANCE] = chance
    return out


def scored_retention(bed: TestBed, models: Sequence[Trained], backbone: Store, k: int) -> MeasureTable:
    """Return retention by text-tower score: mean percentile of the final top k in the ranking by one feedback."""
    mine = [n for n, s in enumerate(bed.sessions) if len(s.turns) > 1]
    turns = max((len(bed.sessions[n].turns) for n in mine), default=0)
    columns = ("all earlier", *(_ago(n) for n in range(1, turns)), "newest feedback")
    how = f"Mean percentile of the final top {k} when the gallery is ranked by one earlier feedback alone,"
    cosine = "by the cosine of its text embedding with the images' (50 is chance, 100 the best match)."
    out = MeasureTable(f"{how} {cosine} An estimate: the text tower judges.", columns, len(mine), "percentile")
    tables = backbone.tables
    if not mine:
        out.why_not = "no test session has two turns or more"
    elif "text" not in tables or "image" not in tables or tables["text"].dim != tables["image"].dim:
        out.why_not = f"store {backbone.path.name} has no image and text rows of one width, so no tower can judge"
    if out.why_not:
        return out
    judge = _Judge(bed, backbone)
    tops = {trained.label: bed.top(bed.finals(trained), k) for trained in models}
    found: dict[str, dict[str, list[float]]] = {label: defaultdict(list) for label in tops}
    for n in mine:
        session = bed.sessions[n]
        early: dict[str, list[float]] = defaultdict(list)  # one mean per session: its turns are not independent
        for number, turn in enumerate(session.turns):
            if (percentiles := judge.percentiles(session.category, turn.text)) is None:
                continue
            ago = len(session.turns) - 1 - number
            for label, top in tops.items():
                value = float(percentiles[top[n][top[n] >= 0]].mean())
                found[label][_ago(ago)].append(value)
                if ago:
                    early[label].append(value)
        for label, values in early.items():
            found[label]["all earlier"].append(float(np.mean(values)))
    out.rows = {label: {name: mean_of(values) for name, values in columns.items()} for label, columns in found.items()}
    return out


def telling_session(
    bed: TestBed, one: Trained, other: Trained, requests: Mapping[str, Sequence[Request]], k: int
) -> int | None:
    """Return the session where ``one`` leads ``other`` most in the share of the final top k that meets early requests."""
    dataset = bed.experiment.dataset
    best: tuple[int, int | None] = (0, None)
    tops = [bed.top(bed.finals(m), k) for m in (one, other)]
    for n, session in enumerate(bed.sessions):
        if early := requests.get(session.id, ())[:-1]:
            kept = [sum(all(meets(dataset, bed.image(n, r), w) for w in early) for r in t[n] if r >= 0) for t in tops]
            best = max(best, (kept[0] - kept[1], n), key=lambda found: found[0])
    return best[1]


class _Judge:
    """Rank gallery rows by one text, as percentiles [G]."""

    def __init__(self, bed: TestBed, backbone: Store):
        self.percentiles = cache(self._percentiles)
        self._backbone, bound = backbone, backbone.catalogue()
        self._galleries = {}
        for category in bed.members:
            keys = [bound.get(i, bytes(16)) for i in bed.candidates[category].images]
            self._galleries[category] = unit_rows(rows_or_zeros(backbone, "image", keys))

    def _percentiles(self, category: str, text: str) -> np.ndarray | None:
        row = self._backbone.find("text", stack_keys([text_key(text)]))
        if row[0] < 0:
            return None
        scores = self._galleries[category] @ self._backbone.gather("text", row)[0].astype(np.float32)
        places = np.empty(len(scores))
        places[np.argsort(scores, kind="stable")] = np.arange(len(scores))
        return 100 * places / max(1, len(scores) - 1)


def _ago(turns: int) -> str:
    return f"{turns} turn{'s' if turns > 1 else ''} ago" if turns else "newest feedback"
