"""Retrieval after every turn: rank of the final target at each turn, hits so far, and the best rank so far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from manifests.schema import References, Session
from pipeline.evaluation.evaluate import Candidates, evaluate

CUTOFFS = (1, 5, 10)


@dataclass(frozen=True)
class TurnRanks:
    """Rank of the final target after each turn. ``ranks``: int64 [S, T], 0 after a session's end; ``first``: turn of
    the first column (for a model that answers after the last turn only, that turn)."""

    sessions: tuple[str, ...]
    ranks: np.ndarray
    first: int = 1

    def curves(self, cutoffs: Sequence[int] = CUTOFFS) -> dict[str, list[float]]:
        """Return metric -> value per turn, over the sessions that have the turn; in percent unless noted.

        ``R@K``: target among the first K after this turn. ``Hits@K``: after this turn or an earlier one (ChatIR).
        ``best``: mean of log2 of the best rank so far. ``n``: sessions that have the turn.
        """
        present = self.ranks > 0
        best = np.minimum.accumulate(np.where(present, self.ranks, np.iinfo(np.int64).max), axis=1)
        out: dict[str, list[float]] = {"n": present.sum(0).tolist()}
        columns = range(self.ranks.shape[1])
        for k in cutoffs:
            out[f"R@{k}"] = [100 * float(np.mean(self.ranks[present[:, t], t] <= k)) for t in columns]
        for k in cutoffs:
            out[f"Hits@{k}"] = [100 * float(np.mean(best[present[:, t], t] <= k)) for t in columns]
        out["best"] = [float(np.mean(np.log2(best[present[:, t], t]))) for t in columns]
        return out


def rank_turns(
    outputs: np.ndarray,
    lengths: Sequence[int],
    sessions: Sequence[Session],
    galleries: Mapping[str, Candidates],
    references: References = "kept",
    **extra: Any,
) -> TurnRanks:
    """Rank the final target of each session after each of its turns; sessions whose target has no feature are left out.

    outputs: [S, T, D], f'_qry(1..T), or [S, 1, D], f'_qry(N) of a model without earlier outputs; lengths: [S], turns of
    each session. Raises as ``evaluate``.
    """
    whole = outputs.shape[1] == 1 and max(lengths) > 1
    turns = max(lengths)
    names: tuple[str, ...] = ()
    columns = []
    for turn in range(outputs.shape[1]):
        rows = [n for n, length in enumerate(lengths) if whole or length > turn]
        found = evaluate(outputs[rows, turn], [sessions[n] for n in rows], galleries, references=references, **extra)
        if not turn:
            names = found.session_ids
        place = dict(zip(found.session_ids, found.ranks.tolist(), strict=True))
        columns.append([place.get(name, 0) for name in names])
    return TurnRanks(names, np.array(columns, dtype=np.int64).T, turns if whole else 1)
