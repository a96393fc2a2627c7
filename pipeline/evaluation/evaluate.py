"""Final-turn retrieval of test sessions over their category's gallery (paper section 4.4)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from manifests.errors import FashionNTMError
from manifests.identity import stack_keys
from manifests.schema import NO_IMAGE, Gallery, References, Session
from pipeline.evaluation.metrics import PRECISION_CUTOFFS, Averaging, average_precision, summarize
from pipeline.evaluation.ranking import SCORES_HELD, DistinctRows, distinct_units, ranks, score_ranks

if TYPE_CHECKING:
    from cache import Store

ALL = "all"
TIES = "count against the model"
PROTOCOL = {"version": 1, "ties": TIES, "references": "kept"}  # values of the identity field


class EvaluationError(FashionNTMError, ValueError):
    """Nothing to evaluate: a category has no gallery, or no session has features and a target."""


@dataclass(frozen=True)
class Candidates:
    """Gallery features of one category. ``dropped``: its images without a feature, which cannot be retrieved."""

    images: tuple[str, ...]  # [G]
    features: np.ndarray  # [G, D] float32, f_tar
    dropped: tuple[str, ...] = ()

    @cached_property
    def index(self) -> dict[str, int]:
        return {image: row for row, image in enumerate(self.images)}

    @cached_property
    def distinct(self) -> DistinctRows:
        """Return the distinct unit rows of ``features``, computed once for all runs."""
        return distinct_units(self.features)


def load_candidates(store: Store, galleries: Iterable[Gallery]) -> dict[str, Candidates]:
    """Return category -> target features of its gallery from the store, in gallery order, as float32.

    Galleries are those of one split. Images that are not bound in the store, or whose extraction failed, are dropped.
    """
    bound = store.catalogue()
    found = {}
    for gallery in galleries:
        named = [image for image in gallery.images if image in bound]
        rows = store.find("target", stack_keys(bound[image] for image in named))
        kept = rows >= 0
        images = tuple(image for image, keep in zip(named, kept, strict=True) if keep)
        members = set(images)
        features = np.asarray(store.gather("target", rows[kept]), dtype=np.float32)
        dropped = tuple(image for image in gallery.images if image not in members)
        found[gallery.category] = Candidates(images, features, dropped)
    return found


@dataclass(frozen=True)
class Evaluation:
    """Target rank of every evaluated session, and the skipped sessions with reasons."""

    session_ids: tuple[str, ...]  # [S]
    categories: tuple[str, ...]  # [S]
    target_ids: tuple[str, ...]  # [S]
    ranks: np.ndarray  # int64 [S], 1 is best
    averaging: Averaging
    subsets: dict[str, np.ndarray]  # name -> bool [S]; always includes "all"
    galleries: dict[str, dict[str, Any]]  # category -> {"images": ranked candidates, "dropped": [ids]}
    skipped: dict[str, str]  # session id -> reason
    references: References = "kept"
    extra: dict[str, np.ndarray] = field(default_factory=dict)  # mAP@K: AP@K of each session in percent [S]; not saved

    def metrics(self) -> dict[str, dict[str, dict[str, float]]]:
        """Return subset -> category or "overall" -> R@K, MRR and mean in percent, and ``n`` sessions."""
        labels, found = np.array(self.categories, dtype=object), {}
        for name, member in self.subsets.items():
            extra = {key: values[member] for key, values in self.extra.items()}
            about = (labels[member].tolist(), self.averaging, self.galleries)
            found[name] = summarize(self.ranks[member], *about, extra=extra)
        return found

    def summary(self, **facts: Any) -> dict[str, Any]:
        """Return the contents of ``summary.json``: metrics, evaluation protocol, and the run's ``facts``.

        Tables require the facts ``run`` (id), ``model``, ``seed``, ``store`` (fingerprint), ``dataset``, ``extractor``,
        ``gallery`` ("image", "caption" or "imported") and ``contaminated_on`` (datasets the extractor was trained on).
        """
        return {
            **facts,
            "metrics": self.metrics(),
            "unit": "percent",
            "averaging": self.averaging,
            "ties": TIES,
            "references": self.references,
            "sessions": len(self.session_ids),
            "skipped": dict(self.skipped),
            "galleries": {name: dict(facts) for name, facts in self.galleries.items()},
        }


def evaluate(
    queries: np.ndarray,
    sessions: Sequence[Session],
    galleries: Mapping[str, Candidates],
    subsets: Mapping[str, AbstractSet[str]] | None = None,
    averaging: Averaging = "categories",
    skipped: Mapping[str, str] | None = None,
    score: Callable[[Sequence[int], np.ndarray], np.ndarray] | None = None,
    references: References = "kept",
) -> Evaluation:
    """Rank each session's final target in its category's gallery by cosine similarity.

    Args:
        queries: [S, D] float32, f'_qry(N); row s belongs to ``sessions[s]``.
        galleries: category -> candidates (``load_candidates``).
        subsets: subset name -> session ids; ids that are not evaluated are ignored.
        score: (rows of ``sessions`` [n], candidates [G, D]) -> scores [n, G], higher is better, for models that do not
            rank by the cosine alone; ``queries`` is then unused.
        references: "removed" leaves a session's reference images out of its gallery, unless they are correct.
        skipped: reason by id of sessions already skipped because features are missing; they are reported.

    Raises EvaluationError for a category without a gallery or if no session is left, RankingError for NaN features.
    """
    queries = np.asarray(queries)
    absent = [_no_target(session, galleries) for session in sessions]
    kept = [row for row, reason in enumerate(absent) if not reason]
    left_out = {**(skipped or {}), **{s.id: reason for s, reason in zip(sessions, absent, strict=True) if reason}}
    if not kept:
        shown = "; ".join(f"{name}: {why}" for name, why in list(left_out.items())[:3]) or "no session was given"
        raise EvaluationError(f"no session can be evaluated ({shown}): extract the missing rows, then evaluate again")
    chosen = [sessions[row] for row in kept]
    correct: list[list[int]] = [[] for _ in chosen]  # ranks of each session's correct images, its target first
    for category in dict.fromkeys(s.category for s in chosen):
        mine = np.array([n for n, s in enumerate(chosen) if s.category == category])
        gallery = galleries[category]
        asked = [(n, image) for n in mine for image in chosen[n].correct if image in gallery.index]
        targets = np.array([gallery.index[image] for _, image in asked])
        names = [chosen[n].id for n, _ in asked]
        rows = np.array([kept[n] for n, _ in asked])
        without = [_references(chosen[n], gallery) for n, _ in asked] if references == "removed" else None
        if score is not None:
            found = score_ranks(score(rows.tolist(), gallery.features), targets, gallery.features, names, without)
        else:
            found = ranks(queries[rows], gallery.features, targets, SCORES_HELD, names, without, gallery.distinct)
        for (n, _), rank in zip(asked, found.tolist(), strict=True):
            correct[n].append(rank)
    cutoffs = PRECISION_CUTOFFS if any(session.also for session in chosen) else ()
    ids = tuple(s.id for s in chosen)
    members = {ALL: np.ones(len(ids), dtype=bool)}
    members |= {name: np.array([i in of for i in ids]) for name, of in (subsets or {}).items() if name != ALL}
    return Evaluation(
        session_ids=ids,
        categories=tuple(s.category for s in chosen),
        target_ids=tuple(s.target for s in chosen),
        ranks=np.array([found[0] for found in correct], dtype=np.int64),  # of the target
        averaging=averaging,
        subsets=members,
        galleries={name: {"images": len(g.images), "dropped": list(g.dropped)} for name, g in galleries.items()},
        skipped=left_out,
        references=references,
        extra={f"mAP@{k}": np.array([average_precision(found, k) for found in correct]) for k in cutoffs},
    )


def _references(session: Session, gallery: Candidates) -> list[int]:
    """Return the gallery rows of the session's reference images that are not correct themselves."""
    images = dict.fromkeys(turn.reference for turn in session.turns if turn.reference != NO_IMAGE)
    return [gallery.index[i] for i in images if i in gallery.index and i not in session.correct]


def _no_target(session: Session, galleries: Mapping[str, Candidates]) -> str:
    gallery = galleries.get(session.category)
    if gallery is None:
        known = ", ".join(galleries) or "none"
        missing = f"no gallery of category {session.category!r}; there are: {known}"
        raise EvaluationError(f"session {session.id!r}: {missing}; add one to the dataset")
    if session.target in gallery.index:
        return ""
    if session.target in gallery.dropped:
        return f"its target image {session.target!r} has no feature in the store"
    return f"its target image {session.target!r} is not in the gallery of {session.category!r}"
