"""Cross-validation folds of train sessions that share no (reference, target) pair; test sessions are refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from manifests.errors import FashionNTMError
from manifests.schema import Dataset, Session
from manifests.validation import group_draw, pair_groups


class FoldError(FashionNTMError, ValueError):
    """Test sessions in the input, or fewer groups of sessions than folds."""


def train_only(dataset: Dataset) -> Dataset:
    """Return the dataset without test sessions and test galleries, for model selection."""
    kept = tuple(g for g in dataset.galleries if g.split == "train")
    return dataset.model_copy(update={"sessions": dataset.split("train"), "galleries": kept})


def pair_clean_folds(sessions: Sequence[Session], folds: int, seed: int = 0) -> list[list[int]]:
    """Return the session indices of each fold. Sessions that share pairs, directly or indirectly, are in one fold.

    Groups are assigned, largest first, to the fold with the fewest sessions of their categories. Ties are drawn from
    ``seed`` and the sessions' texts, so the folds do not depend on the machine, the order or the ids.

    Raise FoldError for a test session, and if there are fewer groups than folds.
    """
    wrong = [s.id for s in sessions if s.split != "train"]
    if wrong:
        shown = ", ".join(wrong[:3])
        raise FoldError(
            f"{len(wrong)} sessions are not train sessions ({shown}): nothing may be chosen on test sessions"
        )
    if folds < 2:
        raise FoldError(f"{folds} folds: cross-validation needs at least 2")
    groups = pair_groups(sessions)
    if len(groups) < folds:
        raise FoldError(
            f"{len(sessions)} sessions form {len(groups)} groups without a common pair: ask for fewer folds"
        )

    held: list[list[int]] = [[] for _ in range(folds)]
    counts: list[Counter[str]] = [Counter() for _ in range(folds)]
    for group in sorted(groups, key=lambda g: (-len(g), group_draw(seed, (sessions[i] for i in g)))):
        adds = Counter(sessions[i].category for i in group)
        place = min(range(folds), key=lambda f: (sum(counts[f][c] for c in adds), len(held[f]), f))
        held[place] += group
        counts[place] += adds
    return [sorted(fold) for fold in held]
