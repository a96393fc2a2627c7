"""Which fold each train session and query row belongs to, so that a row's features come from a head that never saw it.

A composer fitted on the very pairs that stage 2 trains on gives them features that are better than any it will give at
test time, and a memory model learns to trust them. Cross-fitting takes each train row's features from a head that was
fitted without that row.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from manifests.errors import ManifestError, Problem
from manifests.identity import digest, pair_key, text_key
from manifests.schema import Session
from manifests.validation import group_draw


@dataclass(frozen=True)
class Folds:
    """``sessions``: fold of each session, in order. ``rows``: content key of a query row -> its fold.

    Rows are stored once per (image, text) content, so sessions that share a row, or a (reference, target) pair, are in
    one fold: ``groups`` such groups, the largest of ``largest`` sessions.
    """

    count: int
    sessions: tuple[int, ...]
    rows: Mapping[bytes, int]
    groups: int
    largest: int

    def sizes(self) -> list[int]:
        """Sessions of each fold."""
        return [self.sessions.count(fold) for fold in range(self.count)]

    def digest(self) -> str:
        """Of everything that says which head makes which row."""
        return digest([self.count, sorted((key.hex(), fold) for key, fold in self.rows.items())])


def assign_folds(sessions: Sequence[Session], catalogue: Mapping[str, bytes], count: int, seed: int = 0) -> Folds:
    """Split ``sessions`` into ``count`` folds of about equal size that share no query row and no image pair.

    ``catalogue``: image id -> content key. Groups are taken from the largest to the smallest, equal ones in an order
    drawn from ``seed`` and their texts, each into the fold that holds the fewest sessions: the same folds on any
    machine and in any order of ``sessions``. Raises ManifestError when there are fewer groups than folds.
    """
    keys = [set(_keys(session, catalogue)) for session in sessions]
    groups = _connected(keys)
    if len(groups) < count:
        what = f"{len(sessions)} train sessions make {len(groups)} groups without a shared pair, for {count} folds"
        raise ManifestError([Problem("composer", "key composer.folds", what, f"use at most {len(groups)} folds")])
    groups.sort(key=lambda g: (-len(g), group_draw(seed, (sessions[i] for i in g))))
    fold_of, filled = [0] * len(sessions), [0] * count
    for group in groups:
        fold = filled.index(min(filled))
        filled[fold] += len(group)
        for i in group:
            fold_of[i] = fold
    rows = {
        pair_key(catalogue[image], text_key(text)): fold
        for session, fold in zip(sessions, fold_of, strict=True)
        for image, text in queries_of(session)
        if image in catalogue
    }
    return Folds(count, tuple(fold_of), rows, len(groups), len(groups[0]) if groups else 0)


def queries_of(session: Session) -> Iterator[tuple[str, str]]:
    """Every (reference image id, text) that a store holds for ``session``, ST + cat's included."""
    for turn in session.turns:
        yield turn.reference, turn.text
    yield session.turns[0].reference, session.text


def _keys(session: Session, catalogue: Mapping[str, bytes]) -> Iterator[tuple[str, bytes, bytes]]:
    """What must not be in two folds: the session's query rows and its (reference, target) pairs, by content."""
    for image, text in queries_of(session):
        yield "row", catalogue.get(image, image.encode()), text_key(text)
    for reference, target in session.pairs:
        yield "pair", catalogue.get(reference, reference.encode()), catalogue.get(target, target.encode())


def _connected(keys: Sequence[set[tuple[str, bytes, bytes]]]) -> list[list[int]]:
    """Numbers of the sessions that share keys, directly or through others, group by group."""
    parent = list(range(len(keys)))

    def root(node: int) -> int:
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    first: dict[tuple[str, bytes, bytes], int] = {}
    for number, mine in enumerate(keys):
        for key in mine:
            a, b = sorted((root(number), root(first.setdefault(key, number))))
            parent[b] = a
    groups: dict[int, list[int]] = defaultdict(list)
    for number in range(len(keys)):
        groups[root(number)].append(number)
    return list(groups.values())
