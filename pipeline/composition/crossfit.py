"""Cross-fitting: one head per fold of the train sessions besides the head of all, in a store's fingerprint.

A composer gives better features to the pairs it was fitted on than to test pairs. A memory model trained on the same
pairs overfits to that quality. Cross-fitting computes each train row with a head that was fitted without that row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cache import Store
from manifests.errors import ManifestError, Problem
from manifests.identity import digest, pair_key, text_key
from manifests.schema import Dataset, Session
from manifests.validation import connected, group_draw
from pipeline.composition.checkpoint import fitted, fold_folder, load_composer, save_composer
from pipeline.composition.composers.base import Composer
from pipeline.composition.fit import fit_composer, single_turn_recall
from pipeline.composition.request import ComposerRequest, row_dims

MOST_SCORED = 4000  # sessions per score: accurate to a tenth of a percent, and fast


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
        for image, text, _ in session.queries()
        if image in catalogue
    }
    return Folds(count, tuple(fold_of), rows, len(groups), len(groups[0]) if groups else 0)


def _keys(session: Session, catalogue: Mapping[str, bytes]) -> Iterator[tuple[str, bytes, bytes]]:
    """Yield the keys that must not be in two folds: query rows and (reference, target) pairs, by content."""
    for image, text, _ in session.queries():
        yield "row", catalogue.get(image, image.encode()), text_key(text)
    for reference, target in session.pairs:
        yield "pair", catalogue.get(reference, reference.encode()), catalogue.get(target, target.encode())


@dataclass(frozen=True)
class CrossFitted:
    """One head per fold; ``heads[k]`` was fitted on the sessions of all other folds."""

    folds: Folds
    heads: tuple[Composer, ...]
    weights: tuple[str, ...]  # SHA-256 of each head's checkpoint

    def fields(self) -> dict[str, Any]:
        """Return the semantic fields: the heads, and the assignment of rows to heads."""
        return {"count": self.folds.count, "weights": list(self.weights), "rows": self.folds.digest()}

    def head_of(self, row: bytes) -> int:
        """Return the fold of a query row by its content key; -1 for rows that no train session has."""
        return self.folds.rows.get(row, -1)


def load_folds(folder: Path, request: ComposerRequest, sessions: tuple[Session, ...], backbone: Store) -> CrossFitted:
    """Load the heads in ``folder``. Raises the errors of ``load_composer`` when one is missing or damaged."""
    folds = assign_folds(sessions, backbone.catalogue(), request.folds, request.fit.seed)
    loaded = [load_composer(fold_folder(folder, fold)) for fold in range(request.folds)]
    return CrossFitted(folds, tuple(head for head, _ in loaded), tuple(about["weights"] for _, about in loaded))


def fit_folds(
    folder: Path,
    whole: Composer,
    request: ComposerRequest,
    sessions: tuple[Session, ...],
    dataset: Dataset,
    backbone: Store,
    on_epoch: Callable[[dict[str, float]], None] = lambda _: None,
) -> dict[str, Any]:
    """Fit the head of each fold, save it in ``folder`` (valid ones are kept), and return the record for the sidecar.

    All heads use the target space of ``whole``, the head fitted on all ``sessions``, because a store has one target row
    per image: the modules of ``target`` are copied from it and frozen. ``on_epoch`` receives {"epoch", "loss", "fold"}.
    """
    folds = assign_folds(sessions, backbone.catalogue(), request.folds, request.fit.seed)
    unseen: list[tuple[int, dict[str, float]]] = []
    for fold in range(request.folds):
        place = fold_folder(folder, fold)
        own = tuple(s for s, f in zip(sessions, folds.sessions, strict=True) if f == fold)
        if not fitted(place):
            others = tuple(s for s, f in zip(sessions, folds.sessions, strict=True) if f != fold)
            head = new_composer(request, backbone)
            share_target(head, whole)
            curve = []
            for metrics in fit_composer(head, backbone, others, request.fit):
                curve.append(metrics["loss"])
                on_epoch({**metrics, "fold": fold})
            save_composer(place, head, {"fold": fold, "loss": curve, "backbone": backbone.fingerprint})
        head, _ = load_composer(place)
        sample = _sample(own, MOST_SCORED // request.folds)
        unseen.append((len(sample), single_turn_recall(head, backbone, dataset, sample)))
    weights = [n for n, _ in unseen]
    names = [name for name in unseen[0][1] if name != "triplets"]
    scores = {n: float(np.average([score[n] for _, score in unseen], weights=weights)) for n in names}
    seen = single_turn_recall(whole, backbone, dataset, _sample(sessions, MOST_SCORED))
    sizes = {"sessions": folds.sizes(), "groups": folds.groups, "largest_group": folds.largest}
    return {"count": request.folds, **sizes, "out_of_fold": scores, "in_sample": seen}


def new_composer(request: ComposerRequest, backbone: Store) -> Composer:
    """Return a composer of the backbone's sizes, initialized from the fit's seed; the global RNG state is preserved."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(request.fit.seed)
        return request.kind(request.options, *row_dims(backbone))


def share_target(head: Composer, whole: Composer) -> None:
    """Copy the target modules of ``whole`` to ``head`` and freeze them."""
    for mine, other in zip(head.target_modules(), whole.target_modules(), strict=True):
        mine.load_state_dict(other.state_dict())
        mine.requires_grad_(False)


def _sample(sessions: tuple[Session, ...], most: int) -> tuple[Session, ...]:
    """Return about ``most`` evenly spaced ``sessions`` or fewer, so that the categories keep their proportions."""
    return sessions[:: max(1, -(-len(sessions) // max(1, most)))]
