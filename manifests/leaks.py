"""Find test sessions that a model may have memorized: their pairs, images or texts also occur in train sessions.

Multi-turn FashionIQ was split by session, not by pair. The last pair of a test session, which is the expected answer,
is also a train pair in 411 of 1,000 dress, 177 of 681 shirt and 193 of 719 toptee sessions. Tables therefore have
three blocks (``SUBSETS``).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any, Literal

from manifests.schema import NO_IMAGE, Dataset, Session

Exposure = Literal["clean", "seen", "last_seen"]
Subset = Literal["all", "last pair unseen", "no pair seen"]
Scope = Literal["category", "dataset"]

SUBSETS: tuple[Subset, ...] = ("all", "last pair unseen", "no pair seen")
_WITHIN: Mapping[Subset, tuple[Exposure, ...]] = {
    "all": ("clean", "seen", "last_seen"),
    "last pair unseen": ("clean", "seen"),
    "no pair seen": ("clean",),
}


def pair_exposure(dataset: Dataset, scope: Scope = "category") -> dict[str, Exposure]:
    """Return by test session id "last_seen" (the last pair is a train pair), "seen" (only an earlier one) or "clean".

    Train pairs are those of all train sessions, including a validation part. ``scope``: the session's own category,
    or the whole dataset. In Multi-turn FashionIQ, 40 images are in two categories, and the wider scope finds three
    more sessions with a seen last pair and four more with a seen pair.
    """
    seen: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for session in dataset.split("train"):
        seen[_place(session, scope)].update(session.pairs)
    return {session.id: _exposure(session, seen[_place(session, scope)]) for session in dataset.split("test")}


def _place(session: Session, scope: Scope) -> str:
    return session.category if scope == "category" else ""


def _exposure(session: Session, seen: set[tuple[str, str]]) -> Exposure:
    if session.pairs[-1] in seen:
        return "last_seen"
    return "seen" if any(pair in seen for pair in session.pairs) else "clean"


def in_subset(exposure: Exposure, subset: Subset) -> bool:
    """Return whether a test session of this exposure belongs to the subset."""
    return exposure in _WITHIN[subset]


def subset_ids(dataset: Dataset) -> dict[str, set[str]]:
    """Return the ids of the test sessions of each subset."""
    exposure = pair_exposure(dataset)
    return {subset: {i for i, found in exposure.items() if in_subset(found, subset)} for subset in SUBSETS}


def subset_counts(dataset: Dataset, scope: Scope = "category") -> dict[str, dict[Subset, int]]:
    """Count the test sessions by category and subset."""
    exposure = pair_exposure(dataset, scope)
    counts: dict[str, dict[Subset, int]] = {}
    for session in dataset.split("test"):
        row = counts.setdefault(session.category, dict.fromkeys(SUBSETS, 0))
        for subset in SUBSETS:
            row[subset] += in_subset(exposure[session.id], subset)
    return counts


# Kinds of overlap between a test session and the train sessions. Captions (feedback texts) are compared without case.
OVERLAPS: tuple[str, ...] = (
    "last pair",
    "any pair",
    "last query",
    "target image",
    "any image",
    "last caption",
    "any caption",
)


def overlaps(dataset: Dataset, scope: Scope = "category") -> dict[str, frozenset[str]]:
    """Return by test session id its ``OVERLAPS`` with the train sessions of its category (or of the dataset).

    "last pair": (reference, target) of the last turn, the expected answer. "last query": (reference, feedback) of the
    last turn. "target image": the session's target is an image of a train session. "any ...": in any turn.
    """
    seen: tuple[dict[str, set[Any]], ...] = tuple(defaultdict(set) for _ in range(4))
    pairs, queries, images, texts = seen
    for session in dataset.split("train"):
        place = _place(session, scope)
        pairs[place].update(session.pairs)
        images[place].update(image for pair in session.pairs for image in pair if image != NO_IMAGE)
        queries[place].update((turn.reference, _words(turn.text)) for turn in session.turns)
        texts[place].update(_words(turn.text) for turn in session.turns)
    found = {}
    for session in dataset.split("test"):
        place = _place(session, scope)
        last = session.turns[-1]
        has = {
            "last pair": session.pairs[-1] in pairs[place],
            "any pair": any(pair in pairs[place] for pair in session.pairs),
            "last query": (last.reference, _words(last.text)) in queries[place],
            "target image": session.target in images[place],
            "any image": any(image in images[place] for pair in session.pairs for image in pair),
            "last caption": _words(last.text) in texts[place],
            "any caption": any(_words(turn.text) in texts[place] for turn in session.turns),
        }
        found[session.id] = frozenset(name for name in OVERLAPS if has[name])
    return found


def _words(text: str) -> str:
    return " ".join(text.lower().split())
