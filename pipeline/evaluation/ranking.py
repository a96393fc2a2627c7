"""Target ranks by counting over cosine scores. Ties count against the model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from manifests.errors import FashionNTMError

_AT_ONCE = 1 << 14  # rows held in double precision


def unit_rows(rows: np.ndarray, dtype: Any = np.float32) -> np.ndarray:
    """Return rows [..., D] divided by their norms; zero rows stay zero. Norms in double avoid over- and underflow."""
    flat = rows.reshape(-1, rows.shape[-1])
    out = np.empty(flat.shape, dtype=dtype)
    for start in range(0, len(flat), _AT_ONCE):
        part = flat[start : start + _AT_ONCE].astype(np.float64)
        norms = np.sqrt(np.einsum("nd,nd->n", part, part))[:, None]
        out[start : start + _AT_ONCE] = np.divide(part, norms, out=part, where=norms > 0)
    return out.reshape(rows.shape)


SCORES_HELD = 1 << 24  # scores in memory at once: 64 MiB of float32


class RankingError(FashionNTMError, ValueError):
    """Features cannot be ranked: not finite, mismatched width, or a target outside the gallery."""


class DistinctRows(NamedTuple):
    """Distinct rows [U, D], the index among them of each of the n rows [n], and their counts [U]."""

    rows: np.ndarray
    inverse: np.ndarray
    repeats: np.ndarray


def ranks(
    queries: np.ndarray,
    candidates: np.ndarray,
    target_index: np.ndarray,
    block: int = SCORES_HELD,
    names: Sequence[str] | None = None,
    without: Sequence[Sequence[int]] | None = None,
    gallery: DistinctRows | None = None,
) -> np.ndarray:
    """Return the rank of each query's target among the candidates by cosine similarity; 1 is best.

    rank = 1 + #(score > s_target) + #(other candidates with score == s_target) = #(score >= s_target): a target that
    ties with others ranks behind all of them. Candidates with equal features are scored once, so they tie exactly
    regardless of gallery order. A zero query ties with everything and ranks last; a zero candidate scores 0.

    Args:
        queries: [S, D] float32 (or convertible to it), f'_qry(N).
        candidates: [G, D] float32, f_tar of the gallery.
        target_index: [S] int64, the row of each query's target in ``candidates``.
        block: number of scores in memory at once; it affects results only through the rounding of the product.
        names: [S] session ids, for messages.
        without: for each query, rows of ``candidates`` that are not ranked; its target is ranked in any case.
        gallery: ``distinct_units`` of the candidates, for a gallery that is ranked often.

    Returns int64 [S], each between 1 and G. Raises RankingError for NaN or infinite features, mismatched shapes, or a
    target outside the candidates.
    """
    queries, candidates = np.asarray(queries), np.asarray(candidates)
    targets = np.asarray(target_index, dtype=np.int64)
    _check_shapes(queries, candidates, targets, names)
    _check_finite(queries, names, "session", "the model has diverged: lower its learning rate and train again")
    _check_targets(targets, len(candidates), names)

    unique, inverse, repeats = distinct_units(candidates) if gallery is None else gallery
    given, targets = targets, inverse[targets]
    out = np.empty(len(queries), dtype=np.int64)
    step = max(1, block // max(1, len(unique)))
    for start in range(0, len(queries), step):
        rows = slice(start, start + step)
        scores = unit_rows(queries[rows]) @ unique.T
        own = np.take_along_axis(scores, targets[rows, None], axis=1)
        better = scores >= own
        out[rows] = better @ repeats
        if without is not None:
            out[rows] -= _removed(better, inverse, without[rows], given[rows])
    return out


def _removed(
    better: np.ndarray, inverse: np.ndarray, without: Sequence[Sequence[int]], targets: np.ndarray
) -> np.ndarray:
    """Count the candidates of ``without`` that rank at or before the target; better: bool [S, U], inverse: [G]."""
    rows = zip(better, without, targets, strict=True)
    counts = [sum(bool(row[inverse[c]]) for c in set(left_out) - {int(target)}) for row, left_out, target in rows]
    return np.array(counts, dtype=np.int64)


def score_ranks(
    scores: np.ndarray,
    target_index: np.ndarray,
    candidates: np.ndarray,
    names: Sequence[str] | None = None,
    without: Sequence[Sequence[int]] | None = None,
) -> np.ndarray:
    """Return ranks as ``ranks`` does, from given scores [S, G] (higher is better) instead of cosines; int64 [S].

    Candidates with equal features (rows of ``candidates`` [G, D]) get the score of the first of them, so that they
    tie exactly. Raises RankingError for non-finite scores, mismatched shapes, or a target outside the candidates.
    """
    scores, targets = np.asarray(scores), np.asarray(target_index, dtype=np.int64)
    if scores.shape != (len(targets), len(candidates)):
        what = f"scores {list(scores.shape)} for {len(targets)} targets and {len(candidates)} candidates:"
        raise RankingError(f"{what} give one score for each session and candidate")
    _check_finite(scores, names, "session", "the model has diverged: lower its learning rate and train again")
    _check_targets(targets, len(candidates), names)
    _, inverse, repeats = distinct(np.asarray(candidates, dtype=np.float32))
    first = np.unique(inverse, return_index=True)[1]
    unique = scores[:, first]
    own = np.take_along_axis(unique, inverse[targets][:, None], axis=1)
    better = unique >= own
    found = (better @ repeats).astype(np.int64)
    return found if without is None else found - _removed(better, inverse, without, targets)


def distinct_units(candidates: np.ndarray) -> DistinctRows:
    """Return the distinct unit rows of the candidates [G, D]. Raises RankingError for non-finite features."""
    _check_finite(candidates, None, "candidate", "the gallery's features are damaged: verify the store")
    return distinct(unit_rows(candidates))


def distinct(rows: np.ndarray) -> DistinctRows:
    """Return the distinct ones of the rows [n, D].

    A matrix product may round equal columns differently at tile edges, so equal candidates are scored once.
    """
    places: dict[bytes, int] = {}
    first: list[int] = []
    inverse = np.empty(len(rows), dtype=np.int64)
    for number, row in enumerate(rows + np.float32(0)):  # + 0 maps -0.0 to 0.0, so that their bytes are equal
        place = places.setdefault(row.tobytes(), len(first))
        if place == len(first):
            first.append(number)
        inverse[number] = place
    return DistinctRows(rows[first], inverse, np.bincount(inverse, minlength=len(first)))


def _name(names: Sequence[str] | None, kind: str, number: int) -> str:
    return f"{kind} {names[number]!r}" if names is not None else f"{kind} row {number}"


def _check_shapes(
    queries: np.ndarray, candidates: np.ndarray, targets: np.ndarray, names: Sequence[str] | None
) -> None:
    if queries.ndim != 2 or candidates.ndim != 2 or queries.shape[1] != candidates.shape[1]:
        what = f"queries {list(queries.shape)} and candidates {list(candidates.shape)} must be [S, D] and [G, D]"
        raise RankingError(f"{what} of one width D: use the targets of the store that the model was trained on")
    if targets.shape != (len(queries),) or (names is not None and len(names) != len(queries)):
        counted = f"{len(queries)} queries, {targets.size} targets" + (f", {len(names)} names" if names else "")
        raise RankingError(f"{counted}: give one target (and one name) for each query")


def _check_finite(rows: np.ndarray, names: Sequence[str] | None, kind: str, fix: str) -> None:
    bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    if len(bad):
        shown = ", ".join(_name(names, kind, int(i)) for i in bad[:3])
        raise RankingError(f"NaN or infinite scores for {len(bad)} of {len(rows)} ({shown}): {fix}")


def _check_targets(targets: np.ndarray, size: int, names: Sequence[str] | None) -> None:
    bad = np.flatnonzero((targets < 0) | (targets >= size))
    if len(bad):
        number = int(bad[0])
        what = f"{_name(names, 'session', number)}: target row {targets[number]} is not among the {size} candidates:"
        raise RankingError(f"{what} a gallery must hold the target of each of its sessions")
