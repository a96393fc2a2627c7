"""Near-duplicate images by feature similarity: exact blockwise search over all pairs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from manifests.errors import FashionNTMError
from manifests.schema import Dataset, Session
from pipeline.evaluation.rows import unit_rows

_HELD = 1 << 24  # scores in memory at once: 64 MiB of float32


class DuplicateError(FashionNTMError, ValueError):
    """Features are not finite."""


def near_pairs(
    queries: np.ndarray, candidates: np.ndarray, threshold: float, held: int = _HELD
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return all pairs with cosine >= ``threshold``: (query rows, candidate rows, cosines), each [n], by query row.

    Args:
        queries: [Q, D], candidates: [G, D], of any norm; a zero row has no near pairs.
        held: number of scores in memory at once.
    """
    if not (np.isfinite(queries).all() and np.isfinite(candidates).all()):
        raise DuplicateError("features with NaN or infinite values: verify the store and extract these rows again")
    units = unit_rows(queries), unit_rows(candidates)
    found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    step = max(1, held // max(1, len(candidates)))
    for start in range(0, len(queries), step):
        scores = units[0][start : start + step] @ units[1].T
        rows, columns = np.nonzero(scores >= threshold - 1e-6)  # a unit vector's product with itself may round below 1
        found.append((rows + start, columns, scores[rows, columns]))
    if not found:
        return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32)
    first, second, third = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return first, second, third


def train_twins(dataset: Dataset, features: dict[str, np.ndarray], threshold: float) -> dict[str, dict[str, float]]:
    """Return test image -> {near-duplicate train image of another id: cosine}, among images with features [D]."""
    test, train = ([i for i in pair_images(dataset.split(part)) if i in features] for part in ("test", "train"))
    twins: dict[str, dict[str, float]] = defaultdict(dict)
    if train and test:
        first, second = (np.stack([features[i] for i in names]) for names in (test, train))
        for row, column, cosine in zip(*near_pairs(first, second, threshold), strict=True):
            if test[row] != train[column]:
                twins[test[row]][train[column]] = float(min(cosine, 1.0))
    return dict(twins)


def near_overlaps(dataset: Dataset, twins: dict[str, dict[str, float]]) -> dict[str, frozenset[str]]:
    """Return test session -> those of "near target" and "near last pair" that training has; exact ones are near."""
    pairs = {pair for session in dataset.split("train") for pair in session.pairs}
    known = {image for pair in pairs for image in pair}
    by_reference: dict[str, set[str]] = defaultdict(set)
    for reference, target in pairs:
        by_reference[reference].add(target)
    found = {}
    for session in dataset.split("test"):
        reference, target = session.pairs[-1]
        targets = {target, *twins.get(target, ())}
        answered = any(by_reference.get(r, set()) & targets for r in (reference, *twins.get(reference, ())))
        has = {"near target": target in known or target in twins, "near last pair": answered}
        found[session.id] = frozenset(name for name, yes in has.items() if yes)
    return found


def pair_images(sessions: Sequence[Session]) -> dict[str, None]:
    """Return the images of the sessions' pairs, in order."""
    return dict.fromkeys(image for session in sessions for pair in session.pairs for image in pair)
