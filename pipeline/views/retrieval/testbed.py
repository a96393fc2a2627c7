"""Results of trained models on the test sessions, turn by turn, for the report and the study."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from cache import Store
from manifests.identity import stack_keys
from pipeline.evaluation.evaluate import Candidates
from pipeline.evaluation.ranking import ranks
from pipeline.jobs.experiment import Experiment
from pipeline.training.data import SessionFeatures
from pipeline.views.retrieval.index import ExactIndex
from pipeline.views.retrieval.trained import Trained, turn_outputs


class TestBed:
    """Test sessions of a spec with features and a target in their gallery, and their galleries on a device.

    ``sessions`` are in the order of ``features``; ``members[category]`` are their numbers, int64 [n].
    """

    __test__ = False  # not a test case, despite its name

    def __init__(self, experiment: Experiment):
        self.experiment = experiment
        found = experiment.test
        self.candidates: dict[str, Candidates] = experiment.candidates
        kept = [n for n, s in enumerate(found.sessions) if s.target in self.candidates[s.category].index]
        self.features: SessionFeatures = found.subset(kept) if len(kept) < len(found) else found
        self.sessions = self.features.sessions
        self.dropped = len(found) - len(kept) + len(found.skipped)
        self._outputs: dict[str, Tensor] = {}

    @cached_property
    def indexes(self) -> dict[str, ExactIndex]:
        used = dict.fromkeys(s.category for s in self.sessions)
        return {name: ExactIndex(self.candidates[name].features, self.experiment.device) for name in used}

    @cached_property
    def members(self) -> dict[str, np.ndarray]:
        labels = np.array([s.category for s in self.sessions], dtype=object)
        return {name: np.flatnonzero(labels == name) for name in dict.fromkeys(labels)}

    @cached_property
    def lengths(self) -> np.ndarray:
        """Number of turns of each session, int64 [S]."""
        return self.features.lengths.cpu().numpy()

    def outputs(self, trained: Trained) -> Tensor:
        """Return f'_qry [S, T, D] of a model (T = 1 for a model of concatenated captions), computed once."""
        if trained.run not in self._outputs:
            self._outputs[trained.run] = turn_outputs(trained, self.features)
        return self._outputs[trained.run]

    def finals(self, trained: Trained) -> Tensor:
        """Return f'_qry(N) [S, D]."""
        return self.outputs(trained)[:, -1]  # the last turn is repeated after a session's end

    def top(self, queries: Tensor, k: int) -> np.ndarray:
        """Return gallery rows of each session's ``k`` best candidates: [S, D] -> int64 [S, k], padded with -1."""
        out = np.full((len(self.sessions), k), -1, dtype=np.int64)
        for category, numbers in self.members.items():
            rows = self.indexes[category].search(queries[torch.as_tensor(numbers)], k).rows.cpu().numpy()
            out[numbers, : rows.shape[1]] = rows
        return out

    def ranks(self, queries: Tensor, targets: Sequence[str] | None = None) -> np.ndarray:
        """Return the rank of each session's target, or of ``targets``: [S, D] -> int64 [S]; 0 outside its gallery."""
        wanted = targets if targets is not None else [s.target for s in self.sessions]
        out = np.zeros(len(self.sessions), dtype=np.int64)
        rows = queries.cpu().numpy()
        for category, numbers in self.members.items():
            gallery = self.candidates[category]
            if mine := [n for n in numbers if wanted[n] in gallery.index]:
                places = np.array([gallery.index[wanted[n]] for n in mine])
                names = [self.sessions[n].id for n in mine]
                out[mine] = ranks(rows[mine], gallery.features, places, names=names)
        return out

    def image(self, session: int, row: int) -> str:
        return self.candidates[self.sessions[session].category].images[row]

    def images(self, session: int, rows: Iterable[int]) -> tuple[str, ...]:
        """Return the image ids of the rows of ``top`` of a session, without its padding."""
        return tuple(self.image(session, row) for row in rows if row >= 0)

    def spearman(self, one: Tensor, other: Tensor) -> np.ndarray:
        """Return the rank correlation of each session's whole gallery under two queries [S, D]: float64 [S]."""
        out = np.zeros(len(self.sessions))
        for category, numbers in self.members.items():
            for part in torch.as_tensor(numbers).split(256):
                # Pearson's coefficient of the ranks
                scores = (self.indexes[category].scores(queries[part]) for queries in (one, other))
                a, b = (s.argsort(1).argsort(1).double() for s in scores)
                a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
                bottom = (a.square().sum(1) * b.square().sum(1)).sqrt().clamp_min(1e-12)
                out[part.numpy()] = ((a * b).sum(1) / bottom).cpu().numpy()
        return out


def rows_or_zeros(store: Store, table: str, keys: Sequence[bytes]) -> np.ndarray:
    """Return the rows of ``keys``, float32 [n, D]; zeros for a key without a row."""
    rows = store.find(table, stack_keys(keys))
    out = np.zeros((len(rows), store.tables[table].dim), dtype=np.float32)
    out[rows >= 0] = store.gather(table, rows[rows >= 0])
    return out


def overlap(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return the share of results that two lists have in common: int64 [S, k] twice -> float64 [S]."""
    return np.array([len(set(a) & set(b)) / len(a) for a, b in zip(one.tolist(), other.tolist(), strict=True)])
