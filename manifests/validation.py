"""Split a validation part from the train sessions that shares no (reference, target) pair with the rest.

Sessions consist of single-turn pairs, and one pair occurs in many sessions. A random split would put the same pair
on both sides and select for memorization, so sessions that share pairs, directly or indirectly, stay together.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from manifests.errors import ManifestError, Problem
from manifests.schema import Session


def pair_groups(sessions: Sequence[Session]) -> list[list[int]]:
    """Return the connected components of sessions over shared pairs, as session indices, in order of appearance."""
    parent = list(range(len(sessions)))

    def root(node: int) -> int:
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    first: dict[tuple[str, str], int] = {}
    for number, session in enumerate(sessions):
        for pair in session.pairs:
            a, b = sorted((root(number), root(first.setdefault(pair, number))))
            parent[b] = a
    groups: dict[int, list[int]] = defaultdict(list)
    for number in range(len(sessions)):
        groups[root(number)].append(number)
    return list(groups.values())


def split_validation(
    sessions: Sequence[Session], fraction: float, seed: int
) -> tuple[tuple[Session, ...], tuple[Session, ...]]:
    """Split into (fit, validation), about ``fraction`` of each category's sessions, both in the order of ``sessions``.

    Groups of pair-connected sessions are drawn in an order that depends on ``seed`` and the sessions' texts only, so
    the split does not depend on the machine, the order of ``sessions`` or, unless texts are equal, the ids. A group
    that would exceed a category's rounded share is skipped; a category whose groups are all larger gets none.

    Raise ValueError unless 0 <= fraction < 1; ManifestError if a positive fraction yields no validation session.
    """
    if not 0 <= fraction < 1:
        raise ValueError(f"fraction must be in [0, 1), found {fraction}")
    share = {c: round(n * fraction) for c, n in Counter(s.category for s in sessions).items()}
    groups = sorted(pair_groups(sessions), key=lambda g: group_draw(seed, (sessions[i] for i in g)))
    taken: Counter[str] = Counter()
    chosen: set[int] = set()
    for group in groups:
        adds = Counter(sessions[i].category for i in group)
        if all(taken[c] + n <= share[c] for c, n in adds.items()):
            taken += adds
            chosen.update(group)
    if fraction > 0 and sessions and not chosen:
        smallest = min(map(len, groups))
        what = f"fraction {fraction} of {len(sessions)} sessions leaves no validation session"
        fix = f"the smallest group of sessions that share no pair with others has {smallest}: use a larger fraction"
        raise ManifestError([Problem("validation", "key validation.fraction", what, fix)])
    fit = tuple(s for i, s in enumerate(sessions) if i not in chosen)
    return fit, tuple(s for i, s in enumerate(sessions) if i in chosen)


def group_draw(seed: int, group: Iterable[Session]) -> tuple[bytes, bytes]:
    """Return the random sort key of a group, drawn from ``seed`` and its first session by category and text.

    Ids only break ties between sessions of equal texts, so renaming them does not change the split.
    """

    def draw(text: str) -> bytes:
        return hashlib.sha256(f"{seed}\0{text}".encode("utf-8", errors="surrogatepass")).digest()

    first = min(group, key=lambda s: (s.category, s.text, s.id))
    return draw(f"{first.category}\0{first.text}"), draw(first.id)
