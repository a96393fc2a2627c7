"""Which test sessions a model may have memorised: their (reference, target) pairs are also in train sessions.

Multi-turn FashionIQ was cut by session, not by pair. The last pair of a test session, which is the very answer that
is asked for, is also a train pair in 411 of 1,000 dress, 177 of 681 shirt and 193 of 719 toptee sessions. Tables
therefore have three columns (``SUBSETS``).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Literal

from manifests.schema import Dataset, Session

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
    """By test session id: "last_seen" (its last pair is a train pair), "seen" (only an earlier one is) or "clean".

    Train pairs are those of all train sessions, a validation part included. ``scope``: those of the session's own
    category, or of the whole dataset. In Multi-turn FashionIQ 40 images are in two categories, and the wider scope
    finds three more sessions with a seen last pair and four more with a seen pair.
    """
    seen: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for session in dataset.split("train"):
        seen[session.category if scope == "category" else ""].update(session.pairs)
    return {
        session.id: _exposure(session, seen[session.category if scope == "category" else ""])
        for session in dataset.split("test")
    }


def _exposure(session: Session, seen: set[tuple[str, str]]) -> Exposure:
    if session.pairs[-1] in seen:
        return "last_seen"
    return "seen" if any(pair in seen for pair in session.pairs) else "clean"


def in_subset(exposure: Exposure, subset: Subset) -> bool:
    """Whether a test session of this exposure counts in the subset."""
    return exposure in _WITHIN[subset]


def subset_sessions(dataset: Dataset, subset: Subset, scope: Scope = "category") -> tuple[Session, ...]:
    """The test sessions of a subset, in dataset order."""
    exposure = pair_exposure(dataset, scope)
    return tuple(s for s in dataset.split("test") if in_subset(exposure[s.id], subset))


def subset_counts(dataset: Dataset, scope: Scope = "category") -> dict[str, dict[Subset, int]]:
    """Test sessions by category and subset."""
    exposure = pair_exposure(dataset, scope)
    counts: dict[str, dict[Subset, int]] = {}
    for session in dataset.split("test"):
        row = counts.setdefault(session.category, dict.fromkeys(SUBSETS, 0))
        for subset in SUBSETS:
            row[subset] += in_subset(exposure[session.id], subset)
    return counts
