"""Folds of the train sessions and query rows for cross-fitting.

A composer gives better features to the pairs it was fitted on than to test pairs. A memory model trained on the same
pairs overfits to that quality. Cross-fitting computes each train row with a head that was fitted without that row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from manifests.errors import ManifestError, Problem
from manifests.identity import digest, pair_key, text_key
from manifests.schema import Session
from manifests.validation import connected, group_draw


@dataclass(frozen=True)
class Folds:
    """Assignment to folds. ``sessions``: fold of each session, in order. ``rows``: content key of a query row -> fold.

    Rows are stored once per (image, text) content, so sessions that share a row or a (reference, target) pair form a
    group and are in the same fold. ``groups``: number of groups; ``largest``: sessions in the largest group.
    """

    count: int
    sessions: tuple[int, ...]
    rows: Mapping[bytes, int]
    groups: int
    largest: int

    def sizes(self) -> list[int]:
        """Number of sessions per fold."""
        return [self.sessions.count(fold) for fold in range(self.count)]

    def digest(self) -> str:
        """Digest of the assignment of rows to heads."""
        return digest([self.count, sorted((key.hex(), fold) for key, fold in self.rows.items())])


def assign_folds(sessions: Sequence[Session], catalogue: Mapping[str, bytes], count: int, seed: int = 0) -> Folds:
    """Split ``sessions`` into ``count`` folds of similar size that share no query row and no image pair.

    ``catalogue``: image id -> content key. Groups are assigned in decreasing size (ties in an order drawn from ``seed``
    and their texts) to the fold with the fewest sessions. The folds do not depend on the machine or on the order of
    ``sessions``. Raises ManifestError when there are fewer groups than folds.
    """
    keys = [set(_keys(session, catalogue)) for session in sessions]
    groups = connected(keys)
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
    """Yield the (reference image id, text) of each query row of ``session``, ST + cat's included."""
    for turn in session.turns:
        yield turn.reference, turn.text
    yield session.turns[0].reference, session.text


def _keys(session: Session, catalogue: Mapping[str, bytes]) -> Iterator[tuple[str, bytes, bytes]]:
    """Yield the keys that must not be in two folds: query rows and (reference, target) pairs, by content."""
    for image, text in queries_of(session):
        yield "row", catalogue.get(image, image.encode()), text_key(text)
    for reference, target in session.pairs:
        yield "pair", catalogue.get(reference, reference.encode()), catalogue.get(target, target.encode())
