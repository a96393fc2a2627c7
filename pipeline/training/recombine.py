"""Recombination of train pairs into more train sessions: other histories that lead to the same last turn."""

from __future__ import annotations

import torch
from torch import Tensor

from manifests.errors import ManifestError, Problem
from pipeline.training.data import SessionFeatures, SessionRows


class Histories:
    """The turns of the train sessions and their possible predecessors.

    A session is a chain of (reference, target) pairs, each with its feedback: a turn may follow any turn of the same
    category whose target is its reference. The 17,000 train pairs of Multi-turn FashionIQ form 9,000 sessions of two to
    four turns, and can be recombined into more than 200,000.
    """

    def __init__(self, features: SessionFeatures):
        """Index the turns. Raises ManifestError for sessions whose turns all lead to the final target (no chain)."""
        final = next((s.id for s in features.sessions if s.turn_targets == "final"), None)
        if final is not None:
            what = f"the turns of session {final!r} lead to its final target, so their pairs form no chain"
            raise ManifestError([Problem("training", "key training.recombine", what, "set it to 0")])
        numbers: dict[tuple[str, int, int], int] = {}  # (category, query row, target row) of a turn
        images: dict[tuple[str, str], int] = {}
        cells, ends, own = [], [], []
        rows = zip(features.sessions, features.query_rows.tolist(), features.target_rows.tolist(), strict=True)
        for number, (session, queries, targets) in enumerate(rows):
            chain = []
            for n, pair in enumerate(session.pairs):
                turn = (session.category, queries[n], targets[n])
                if turn not in numbers:
                    numbers[turn] = len(numbers)
                    cells.append((number, n))
                    ends.append([images.setdefault((session.category, image), len(images)) for image in pair])
                chain.append(numbers[turn])
            own.append(chain + chain[-1:] * (features.turns - len(chain)))
        device = features.device
        self.own = torch.tensor(own, device=device)  # [S, T], the sessions' turns by number
        session, place = torch.tensor(cells, device=device).T
        tables = (features.query_rows, features.target_rows, features.text_rows)
        self._rows = [table[session, place] for table in tables if table is not None]
        # Image numbers of each turn:
        self.reference, self._target = torch.tensor(ends, device=device).T
        self._count = torch.bincount(self._target, minlength=len(images))  # number of turns that lead to each image ...
        self._leading = self._target.argsort(stable=True)  # ... their numbers, sorted by image ...
        self._first = self._count.cumsum(0) - self._count  # ... and the start of each image's turns

    def redrawn(self, index: Tensor, lengths: Tensor, probability: float) -> tuple[Tensor, Tensor]:
        """Replace the history of each of the sessions ``index`` (int64 [B]) with the given ``probability``.

        The last turn, and so the target, is kept. A history is drawn backward turn by turn until it is as long as the
        session's own (``lengths``, int64 [B]), no turn leads to its first image, or the drawn turn would repeat an
        image. Returns turn numbers, int64 [B, T] (padding repeats the last turn), and the new lengths, int64 [B].
        """
        chosen = torch.rand(len(index), device=index.device) < probability
        own = self.own[index]
        chain, length = [own[:, -1]], torch.ones_like(lengths)
        seen = [self._target[chain[0]], self.reference[chain[0]]]
        for _ in range(own.shape[1] - 1):
            image = seen[-1]
            pick = (torch.rand(len(index), device=index.device) * self._count[image]).long()
            before = self._leading[(self._first[image] + pick).clamp_max(len(self._leading) - 1)]
            start = self.reference[before]
            # A history that has ended does not grow again.
            grows = (length == len(chain)) & (length < lengths) & (self._count[image] > 0)
            for other in seen:
                grows &= start != other
            chain.append(before)
            seen.append(start)
            length = length + grows
        place = (length[:, None] - 1 - torch.arange(own.shape[1], device=index.device)).clamp_min(0)
        turns = torch.where(chosen[:, None], torch.stack(chain, 1).gather(1, place), own)
        return turns, torch.where(chosen, length, lengths)

    def rows(self, turns: Tensor, lengths: Tensor) -> SessionRows:
        """Return the rows of sessions given by turn numbers ``turns`` (int64 [B, T]) and ``lengths`` (int64 [B])."""
        queries, targets, *texts = (table[turns] for table in self._rows)
        return SessionRows(queries, targets, texts[0] if texts else None, lengths)
