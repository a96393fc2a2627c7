"""Sessions as shown on the page: each turn's reference, feedback, results, rank and memory weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from pipeline.views.report.charts import heat
from pipeline.views.retrieval.testbed import TestBed
from pipeline.views.retrieval.trained import Trained


@dataclass(frozen=True)
class TurnView:
    """One turn as shown. ``top``: image ids, best first; empty for a turn that the model does not answer.

    ``rank``: rank of the session's target after this turn, 0 if unknown; ``heat``: SVG of the read and write weights.
    """

    reference: str
    text: str
    target: str
    top: tuple[str, ...]
    rank: int
    heat: str = ""


@dataclass(frozen=True)
class Strip:
    session: str
    category: str
    target: str
    rank: int
    gallery: int
    turns: tuple[TurnView, ...]

    @property
    def images(self) -> list[str]:
        return [self.target, *(t.reference for t in self.turns), *(i for t in reversed(self.turns) for i in t.top)]

    @property
    def search(self) -> str:
        return " ".join([self.session, self.category, *(t.text for t in self.turns)]).lower()


def strips_of(bed: TestBed, trained: Trained, chosen: Sequence[int], k: int) -> list[Strip]:
    """Return the strips of the sessions ``chosen`` (numbers in ``bed``), in that order."""
    outputs = bed.outputs(trained)
    ranks = [bed.ranks(outputs[:, n]) for n in range(outputs.shape[1])]
    tops = [bed.top(outputs[:, n], k) for n in range(outputs.shape[1])]
    weights = memory_weights(bed, trained, chosen)
    found = []
    for place, number in enumerate(chosen):
        session = bed.sessions[number]
        last = len(session.turns) - 1
        views = []
        for turn, (said, target) in enumerate(zip(session.turns, session.targets, strict=True)):
            top, rank = tuple[str, ...](), 0
            if trained.by_turn or turn == last:
                at = turn if trained.by_turn else 0
                top, rank = bed.images(number, tops[at][number]), int(ranks[at][number])
            svg = "" if weights is None else heat(weights[place, turn], f"turn {turn + 1}")
            views.append(TurnView(said.reference, said.text, target, top, rank, svg))
        size = len(bed.candidates[session.category].images)
        found.append(Strip(session.id, session.category, session.target, views[-1].rank, size, tuple(views)))
    return found


@torch.no_grad()
def memory_weights(bed: TestBed, trained: Trained, chosen: Sequence[int]) -> np.ndarray | None:
    """Return read and write weights of each stage after each turn: [sessions, T, C, 2, N]; None without heads."""
    start = trained.model.initial_state(len(chosen)) if len(chosen) else None
    stages = getattr(start, "stages", None)
    if not stages or not hasattr(stages[0], "weights"):
        return None
    queries, _, _ = bed.features.batch(torch.as_tensor(chosen, device=bed.features.device))
    state, found = start, []
    for turn in queries.unbind(1):
        _, state = trained.model.step(turn, state)
        found.append(torch.stack([stage.weights for stage in state.stages], 1))
    return torch.stack(found, 1).cpu().numpy()


def choose(bed: TestBed, first: Sequence[int], count: int, seed: int = 0) -> list[int]:
    """Return ``first`` and then random other sessions, ``count`` in total; the same seed gives the same sessions."""
    kept = list(dict.fromkeys(first))[:count]
    others = [n for n in range(len(bed.sessions)) if n not in set(kept)]
    drawn = np.random.default_rng(seed).permutation(len(others))[: count - len(kept)]
    return kept + sorted(others[n] for n in drawn)


def changes(bed: TestBed, one: Trained, other: Trained, count: int) -> tuple[list[int], list[int]]:
    """Return the sessions with the largest wins of ``one`` over ``other``, and losses, by ratio of final ranks."""
    a, b = bed.ranks(bed.finals(one)), bed.ranks(bed.finals(other))
    gain = np.log(b) - np.log(a)
    order = np.lexsort((np.arange(len(gain)), -gain))
    wins = [int(n) for n in order[:count] if gain[n] > 0]
    losses = [int(n) for n in order[::-1][:count] if gain[n] < 0]
    return wins, losses
