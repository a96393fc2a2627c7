"""``history``: how much earlier turns contribute to retrieval, with at most a few fitted weights.

Each row is one mixture of the turns' f_qry: the last turn alone; ST + EWMA with the session's own history, with that of
another session of its category (control), averaged over draws, or with another chain of pairs, through another image, to
the same last reference; and weights of the turns, one per session length and turn, fitted on the train sessions, or on
the loss of the test sessions themselves, which is no result, nor an upper bound of recall.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.core.text_table import aligned
from pipeline.evaluation.evaluate import Candidates, evaluate
from pipeline.jobs.experiment import Experiment
from pipeline.training.data import SessionFeatures
from pipeline.training.determinism import seeded
from pipeline.training.models.ewma import EWMA, running_average
from pipeline.training.sampling import Histories

STEPS, RATE, SCALE = 150, 0.02, 25.0  # fit of the weights: Adam on the cross-entropy over the gallery
TRIES = 8  # drawn histories per kept history
METRICS = ("n", "R@5", "R@8", "mean")
LAST, OWN = "last turn alone", "EWMA, the session's own history"
CONTROL = "EWMA, another session's history (control)"
ON_TRAIN, ON_TEST = "fixed weights, fitted on the train sessions", "fixed weights, fitted on the test sessions' loss"
FITTED = 2000  # maximum sessions per category to fit on: scores of all turns are in memory


@dataclass(frozen=True)
class Line:
    """One mixture: subset -> metrics in percent ("n", "R@5", "R@8", "mean"), overall with the dataset's averaging."""

    name: str
    found: dict[str, dict[str, float]]


@dataclass(frozen=True)
class HistoryContribution:
    """``alpha``: of EWMA, chosen as for its row. ``weights``: [length][turns back], fitted on the train sessions."""

    dataset: str
    part: str
    features: str
    alpha: float
    lines: tuple[Line, ...]
    same_reference: tuple[Line, ...]
    weights: list[list[float]]

    def as_dict(self) -> dict[str, Any]:
        parts = {k: [vars(line) for line in getattr(self, k)] for k in ("lines", "same_reference")}
        return {**vars(self), **parts}

    def text(self) -> str:
        title = "no other chain of pairs leads to the last reference of a session"
        if self.same_reference:
            n = self.same_reference[0].found["all"]["n"]
            what = "sessions to whose last reference another chain of pairs leads, through another image"
            title = f"{what} (n = {n:.0f})"
        out = [f"{self.dataset}, {self.part} sessions, store {self.features}: how much earlier turns contribute"]
        out += [f"R@5 / R@8; EWMA's alpha is {self.alpha:g}", "", *_table(self.lines)]
        out += ["", title, *(_table(self.same_reference) if self.same_reference else ())]
        out += ["", "weights fitted on the train sessions, newest turn first, by session length:"]
        out += [f"  {n}: {'  '.join(f'{w:.2f}' for w in row)}" for n, row in enumerate(self.weights, start=1)]
        return "\n".join(out)


def _table(lines: tuple[Line, ...]) -> list[str]:
    columns = {name: f"{name.replace('_', ' ')} ({values['n']:.0f})" for name, values in lines[0].found.items()}
    rows = [["", *columns.values()]]
    rows += [[x.name, *(f"{x.found[c]['R@5']:.1f} / {x.found[c]['R@8']:.1f}" for c in columns)] for x in lines]
    return [f"  {row}" for row in aligned(rows)]


def history_contribution(
    experiment: Experiment, part: Literal["test", "train"] = "test", draws: int = 5
) -> HistoryContribution:
    """Measure on the test sessions of ``experiment``, or on the fitted train sessions ranked among their own targets.

    ``draws``: number of random draws of histories. Propagates errors from loading the features (nothing extracted, no
    test sessions).
    """
    experiment.require_train("on which `history` chooses the EWMA's weight")
    fit, validation = experiment.parts
    shown, galleries, subsets = fit, own_targets(fit), {}
    if part == "test":
        shown, galleries, subsets = experiment.test, experiment.candidates, experiment.subsets
    average = EWMA(EWMA.Options(), shown.dim).to(shown.device)
    average.fit_parameters(fit if validation is None else validation)
    alpha = float(average.alpha)
    own = _ewma(shown, shown.queries[shown.query_rows], shown.lengths, alpha)
    with seeded(0, shown.device):
        control = [_ewma(shown, *_other_histories(shown), alpha) for _ in range(draws)]
        others, found = _other_chains(shown, alpha, draws)

    def line(name: str, queries: list[Tensor], rows: Tensor | None = None) -> Line:
        """Return the metrics of ``queries``, a tensor [S, D] per draw, averaged over draws; only ``rows`` if given."""
        sessions, results = shown.sessions, []
        if rows is not None:
            sessions, queries = tuple(sessions[r] for r in rows.tolist()), [q[rows] for q in queries]
        for f in queries:
            ranked = evaluate(f.cpu().numpy(), sessions, galleries, subsets, experiment.dataset.averaging)
            results.append({name: found["overall"] for name, found in ranked.summary()["metrics"].items()})
        filled = [name for name, metrics in results[0].items() if metrics["n"]]
        return Line(name, {n: {k: float(np.mean([m[n][k] for m in results])) for k in METRICS} for n in filled})

    trained, plain = fitted_weights(fit, own_targets(fit)), {LAST: [last_turn(shown)], OWN: [own]}
    kinds = plain | {CONTROL: control, ON_TRAIN: [mixed(shown, trained)]}
    if part == "test":
        kinds[ON_TEST] = [mixed(shown, fitted_weights(shown, galleries))]
    lines = tuple(line(name, queries) for name, queries in kinds.items())
    chains = plain | {"EWMA, another chain to the reference": others, CONTROL: control} if len(found) else {}
    same = tuple(line(name, queries, found) for name, queries in chains.items())
    features = f"{experiment.store.extractor}-{experiment.store.fingerprint[:12]}"
    weights = [row[: n + 1] for n, row in enumerate(trained.tolist())]
    return HistoryContribution(experiment.dataset.name, part, features, alpha, lines, same, weights)


def last_turn(features: SessionFeatures) -> Tensor:
    """Return f_qry(N) of every session, [S, D]; padding repeats the last turn."""
    return features.queries[features.query_rows[:, -1]]


def _ewma(features: SessionFeatures, queries: Tensor, lengths: Tensor, alpha: float) -> Tensor:
    """Return the moving average of turns [S, T, D] after each session's last turn, [S, D]."""
    return running_average(queries, alpha)[torch.arange(len(lengths), device=features.device), lengths - 1]


def _other_histories(features: SessionFeatures) -> tuple[Tensor, Tensor]:
    """Return every session's last turn preceded by equally many earlier turns of another session of its category.

    If the other session has fewer turns, the result is shorter. The last turn of the other session is never used.
    """
    queries, lengths = features.queries[features.query_rows], features.lengths
    other = torch.empty(len(features), dtype=torch.int64)
    categories = np.array([s.category for s in features.sessions])
    for category in np.unique(categories):
        members = torch.from_numpy(np.flatnonzero(categories == category))
        mixed_up = members[torch.randperm(len(members))]
        other[mixed_up] = mixed_up.roll(1)  # cyclic shift within the category: no session is its own control
    other = other.to(features.device)
    kept = torch.minimum(lengths, lengths[other])
    place = torch.arange(features.turns, device=features.device)[None]
    first = (lengths[other] - kept)[:, None]
    rows = (place + first).clamp_max(features.turns - 1)[..., None].expand(-1, -1, queries.shape[-1])
    drawn = queries[other].gather(1, rows)
    return torch.where((place < kept[:, None] - 1)[..., None], drawn, last_turn(features)[:, None]), kept


def _other_chains(features: SessionFeatures, alpha: float, draws: int) -> tuple[list[Tensor], Tensor]:
    """Return EWMA with other chains to the last reference, one tensor [S, D] per draw, and the sessions that have one.

    If all turns lead to the final target, no session has one, because the pairs form no chain.
    """
    if any(s.turn_targets == "final" for s in features.sessions):
        return [], torch.empty(0, dtype=torch.int64)
    histories, index = Histories(features), torch.arange(len(features), device=features.device)
    found: list[dict[int, Tensor]] = []

    def before(turns: Tensor, lengths: Tensor) -> Tensor:
        """Return the index of the reference image of the second-to-last turn."""
        return histories.reference[turns.gather(1, (lengths - 2).clamp_min(0)[:, None])[:, 0]]

    for _ in range(TRIES * draws):  # draws may return the session's own history, which is dropped
        turns, lengths = histories.redrawn(index, features.lengths, 1.0)
        averages = _ewma(features, features.queries[histories.rows(turns, lengths).queries], lengths, alpha)
        new = (lengths > 1) & (before(turns, lengths) != before(histories.own, features.lengths))
        found.append({int(s): averages[s] for s in new.nonzero()[:, 0]})
    sessions = sorted({s for part in found for s in part})
    others = []
    for draw in range(draws):
        out = last_turn(features).clone()
        for s in sessions:
            usable = [part[s] for part in found if s in part]
            out[s] = usable[draw % len(usable)]
        others.append(out)
    return others, torch.tensor(sessions, dtype=torch.int64)


def own_targets(features: SessionFeatures) -> dict[str, Candidates]:
    """Return the targets of each category's turns as its gallery."""
    rows: dict[str, dict[str, int]] = {}
    for session, targets in zip(features.sessions, features.target_rows.tolist(), strict=True):
        rows.setdefault(session.category, {}).update(zip(session.targets, targets, strict=False))
    return {
        category: Candidates(tuple(of), features.targets[torch.tensor(list(of.values()))].cpu().numpy())
        for category, of in rows.items()
    }


def turns_back(features: SessionFeatures) -> Tensor:
    """Return f_qry in reverse order (last turn first), [S, T, D], padded with zeros."""
    back = features.lengths[:, None] - 1 - torch.arange(features.turns, device=features.device)
    queries = features.queries[features.query_rows.gather(1, back.clamp_min(0))]
    return queries * (back >= 0)[..., None]


def mixed(features: SessionFeatures, weights: Tensor) -> Tensor:
    """Return the turns summed with ``weights`` [T, T] (session length, turns back), [S, D]."""
    return torch.einsum("std,st->sd", turns_back(features), weights[features.lengths - 1])


def fitted_weights(features: SessionFeatures, galleries: dict[str, Candidates]) -> Tensor:
    """Fit weights [T, T] of the turns (session length, turns back) that minimize ``_loss`` on ``features``.

    Adam on the cross-entropy of the cosines with the category's gallery, initialized to the last turn alone; at most
    ``FITTED`` sessions per category, drawn at random.
    """
    weights = torch.zeros(features.turns, features.turns)
    weights[:, 0] = 1
    weights.requires_grad_()
    parts = [_inner_products(features, category, of) for category, of in galleries.items()]
    optimizer = torch.optim.Adam([weights], RATE)
    for _ in range(STEPS):
        loss = _loss(weights, parts)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    fitted = weights.detach()
    return (fitted / fitted.abs().sum(1, keepdim=True)).to(features.device)


def _loss(weights: Tensor, parts: list[tuple[Tensor, Tensor, Tensor, Tensor]]) -> Tensor:
    """Return the cross-entropy of the final targets over the galleries, summed over ``_inner_products``."""
    loss = torch.zeros(())
    for scores, grams, lengths, targets in parts:
        of = weights[lengths - 1]
        norm = torch.einsum("st,stu,su->s", of, grams, of).clamp_min(1e-12).sqrt()
        logits = torch.einsum("st,stg->sg", of, scores) / norm[:, None]
        loss = loss + F.cross_entropy(SCALE * logits, targets)
    return loss


def _inner_products(
    features: SessionFeatures, category: str, gallery: Candidates
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return, for one category: turns x candidates [S, T, G], turns x turns [S, T, T], lengths, target indices."""
    members = [i for i, s in enumerate(features.sessions) if s.category == category and s.target in gallery.index]
    if len(members) > FITTED:
        members = sorted(np.random.default_rng(0).choice(members, FITTED, replace=False).tolist())
    part = features.subset(members)
    turns = turns_back(part).cpu()
    candidates = F.normalize(torch.from_numpy(gallery.features), dim=-1)
    targets = torch.tensor([gallery.index[s.target] for s in part.sessions], dtype=torch.int64)
    return turns @ candidates.T, turns @ turns.mT, part.lengths.cpu(), targets
