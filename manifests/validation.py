"""Split a validation part from the train sessions that shares no (reference, target) pair with the rest.

Sessions consist of single-turn pairs, and one pair occurs in many sessions. A random split would put the same pair
on both sides and select for memorization, so sessions that share pairs, directly or indirectly, stay together. With
``disjoint`` "images", sessions that share an image do.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Sequence

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from manifests.errors import ManifestError, Problem
from manifests.schema import NO_IMAGE, Disjoint, Session


def pair_groups(sessions: Sequence[Session]) -> list[list[int]]:
    """Return the connected components of sessions over shared pairs, as session indices, in order of appearance."""
    return connected([session.pairs for session in sessions])


def image_groups(sessions: Sequence[Session]) -> list[list[int]]:
    """Return the connected components of sessions over shared images, as session indices, in order of appearance."""
    return connected([{image for pair in session.pairs for image in pair} - {NO_IMAGE} for session in sessions])


GROUPS = {"pairs": pair_groups, "images": image_groups}


def connected(keys: Sequence[Iterable[Hashable]]) -> list[list[int]]:
    """Group the items n with ``keys[n]`` that share a key, directly or through others; in order of appearance."""
    numbers: dict[Hashable, int] = {}
    edges = [(item, numbers.setdefault(key, len(numbers))) for item, own in enumerate(keys) for key in own]
    items, shared = np.array(edges, dtype=np.int64).reshape(-1, 2).T
    size = len(keys) + len(numbers)  # nodes: the items, then the keys
    graph = coo_array((np.ones(len(items), dtype=bool), (items, len(keys) + shared)), shape=(size, size))
    _, labels = connected_components(graph, directed=False)
    groups: dict[int, list[int]] = defaultdict(list)
    for item, label in enumerate(labels[: len(keys)].tolist()):
        groups[label].append(item)
    return list(groups.values())


def split_validation(
    sessions: Sequence[Session], fraction: float, seed: int, disjoint: Disjoint = "pairs"
) -> tuple[tuple[Session, ...], tuple[Session, ...]]:
    """Split into (fit, validation), about ``fraction`` of each category's sessions, both in the order of ``sessions``.

    Groups of sessions that share pairs (or images, as ``disjoint`` says) are drawn in an order that depends on ``seed`` and the sessions' texts only, so
    the split does not depend on the machine, the order of ``sessions`` or, unless texts are equal, the ids. A group
    that would exceed a category's rounded share is skipped; a category whose groups are all larger gets none.

    Raise ValueError unless 0 <= fraction < 1; ManifestError if a positive fraction yields no validation session.
    """
    if not 0 <= fraction < 1:
        raise ValueError(f"fraction must be in [0, 1), found {fraction}")
    share = {c: round(n * fraction) for c, n in Counter(s.category for s in sessions).items()}
    groups = sorted(GROUPS[disjoint](sessions), key=lambda g: group_draw(seed, (sessions[i] for i in g)))
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
        fix = f"the smallest group of sessions that share no {disjoint[:-1]} with others has {smallest}: use a larger fraction"
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
