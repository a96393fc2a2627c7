"""Which test sessions a model may have memorised: their pairs, images or texts are also in train sessions.

Multi-turn FashionIQ was cut by session, not by pair. The last pair of a test session, which is the very answer that
is asked for, is also a train pair in 411 of 1,000 dress, 177 of 681 shirt and 193 of 719 toptee sessions. Tables
therefore have three blocks (``SUBSETS``).
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


# What of a test session is also in a train session. Captions are feedback texts, compared without regard to case.
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
    """By test session id: which of ``OVERLAPS`` it has with the train sessions of its category (or of the dataset).

    "last pair": (reference, target) of the last turn, the answer itself. "last query": (reference, feedback) of the last
    turn. "target image": the session's target is an image of a train session. "any ...": of any turn.
    """
    pairs, queries, images, texts = (defaultdict(set) for _ in range(4))
    for session in dataset.split("train"):
        place = session.category if scope == "category" else ""
        pairs[place].update(session.pairs)
        images[place].update(image for pair in session.pairs for image in pair)
        queries[place].update((turn.reference, _words(turn.text)) for turn in session.turns)
        texts[place].update(_words(turn.text) for turn in session.turns)
    found = {}
    for session in dataset.split("test"):
        place = session.category if scope == "category" else ""
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
