"""Measure agnosticity to turn order (paper Figure 6): the same feedback, given in another order.

Two experiments over all sessions of two turns or more:
"logged": the model receives the session's turns (reference and feedback together) in reverse.
"interactive": a dialogue is simulated from the first reference image, with the feedback once in order and once in
reverse; the model's own best result among unused images is the next reference, as in the paper's figure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from manifests.identity import stack_keys, text_key
from pipeline.views.report.retention import MeasureTable, mean_of
from pipeline.views.retrieval.queries import Queries
from pipeline.views.retrieval.testbed import TestBed, overlap, rows_or_zeros
from pipeline.views.retrieval.trained import Trained, turn_outputs


@dataclass(frozen=True)
class Example:
    """The session whose overlap is nearest to the mean: its number, and the final top k of both orders."""

    session: int
    overlap: float
    plain: tuple[str, ...]
    turned: tuple[str, ...]


def logged_order(bed: TestBed, models: Sequence[Trained], k: int) -> MeasureTable:
    """Compare the final results of the logged turns with those of the same turns in reverse."""
    columns = (f"overlap@{k}", "rank correlation", f"R@{k} as logged", f"R@{k} reversed")
    kept_column = f"last turn kept: overlap@{k}"
    many, longer = bed.lengths > 1, bed.lengths > 2
    how = f"Each session's (reference, feedback) turns are given in reverse. Overlap of the final top {k}, Spearman's "
    how += "correlation over the whole gallery, and recall of the target."
    last = "The last column reverses the earlier turns alone, in sessions of three turns or more."
    out = MeasureTable(f"{how} {last}", (*columns, kept_column), int(many.sum()))
    if not many.any():
        out.why_not = "no test session has two turns or more"
        return out
    for trained in models:
        if not trained.by_turn:
            continue  # all captions are one text, so there are no turns to permute
        plain, turned = bed.finals(trained), _permuted(bed, trained, keep_last=False)
        one, other = bed.top(plain, k), bed.top(turned, k)
        before, after = bed.ranks(plain), bed.ranks(turned)
        found = (100 * overlap(one, other), bed.spearman(plain, turned), 100.0 * (before <= k), 100.0 * (after <= k))
        row = {name: mean_of(values[many]) for name, values in zip(columns, found, strict=True)}
        if longer.any():
            kept = bed.top(_permuted(bed, trained, keep_last=True), k)
            row[kept_column] = mean_of(100 * overlap(one, kept)[longer])
        out.rows[trained.label] = row
    return out


def _permuted(bed: TestBed, trained: Trained, keep_last: bool) -> Tensor:
    """Return f'_qry(N) [S, D] of every session with its turns (all, or all but the last) in reverse."""
    features = bed.features
    order = torch.arange(features.turns).repeat(len(features), 1)
    for number, length in enumerate(features.lengths.tolist()):
        stop = length - 1 if keep_last else length
        order[number, :stop] = order[number, :stop].flip(0)
        order[number, length:] = order[number, length - 1]
    order = order.to(features.device)
    tables = {name: getattr(features, name) for name in ("query_rows", "text_rows")}
    turned = {name: rows.gather(1, order) for name, rows in tables.items() if rows is not None}
    return turn_outputs(trained, replace(features, **turned))[:, -1]


def interactive_order(bed: TestBed, models: Sequence[Trained], queries: Queries | None, k: int) -> MeasureTable:
    """Compare simulated dialogues with each model, with the feedback in both orders."""
    columns = (f"final overlap@{k}", "final rank correlation", f"first-turn overlap@{k}")
    how = "From the session's first image, the model gets each feedback in turn, and its own best result is the next "
    how += "reference; once in the logged order, once in reverse."
    first = f"compares the top {k} after one feedback: how different the ways to the same end are."
    out = MeasureTable(f"{how} The first-turn column {first}", columns)
    if queries is None or queries.composer is None:
        out.why_not = "the extractor is a joint model: a new (reference, feedback) pair has no cached query"
        return out

    def playable(number: int) -> bool:
        texts = stack_keys(text_key(turn.text) for turn in bed.sessions[number].turns)
        known = queries.backbone.find("text", texts) >= 0
        return bool(known.all()) and queries.knows(bed.sessions[number].turns[0].reference)

    mine = [n for n in np.flatnonzero(bed.lengths > 1).tolist() if playable(n)]
    out.sessions = len(mine)
    if not mine:
        out.why_not = "no session of two turns or more has all of its image and text rows"
        return out
    player = _Player(bed, queries, mine)
    chosen = np.array(mine)
    for trained in models:
        if not trained.by_turn:
            continue
        (early_one, one), (early_other, other) = player.play(trained, False), player.play(trained, True)
        tops = [bed.top(q, k)[chosen] for q in (early_one, early_other, one, other)]
        found, early = overlap(tops[2], tops[3]), overlap(tops[0], tops[1])
        values = (100 * found, bed.spearman(one, other)[chosen], 100 * early)
        out.rows[trained.label] = {name: mean_of(v) for name, v in zip(columns, values, strict=True)}
        place = int(np.abs(found - found.mean()).argmin())
        lists = [bed.images(mine[place], top[place]) for top in tops[2:]]
        out.examples[trained.label] = Example(mine[place], float(found[place]), *lists)
    return out


class _Player:
    """Simulate the sessions ``mine`` as dialogues in one batch, turn by turn."""

    def __init__(self, bed: TestBed, queries: Queries, mine: Sequence[int]):
        self.bed, self.mine, store = bed, list(mine), queries.backbone
        assert queries.composer is not None
        self.composer, self.device = queries.composer, bed.experiment.device
        bound = store.catalogue()
        images = dict.fromkeys(i for c in bed.members for i in bed.candidates[c].images)
        images |= dict.fromkeys(bed.sessions[n].turns[0].reference for n in self.mine)
        known = [i for i in images if i in bound]
        self.place = {image: n for n, image in enumerate(known)}
        self.images = torch.from_numpy(rows_or_zeros(store, "image", [bound[i] for i in known]))
        texts = list(dict.fromkeys(t.text for n in self.mine for t in bed.sessions[n].turns))
        found = store.gather("text", store.find("text", stack_keys(text_key(t) for t in texts)))
        self.texts = torch.from_numpy(found.astype(np.float32))
        self.said = {text: n for n, text in enumerate(texts)}

    @torch.no_grad()
    def play(self, trained: Trained, reverse: bool) -> tuple[Tensor, Tensor]:
        """Return (f'_qry(1), f'_qry(N)), each [S, D] over all test sessions; other sessions keep their logged rows."""
        bed = self.bed
        first, last = bed.outputs(trained)[:, 0].clone(), bed.finals(trained).clone()
        said = {n: [t.text for t in bed.sessions[n].turns][:: -1 if reverse else 1] for n in self.mine}
        used = {n: [bed.sessions[n].turns[0].reference] for n in self.mine}
        state = trained.model.initial_state(len(self.mine))
        for turn in range(max(map(len, said.values()))):
            texts = [said[n][min(turn, len(said[n]) - 1)] for n in self.mine]
            told = self.texts[[self.said[t] for t in texts]]
            query = self.composer.query(self.images[[self.place[used[n][-1]] for n in self.mine]], told)
            if trained.model.texts:
                query = torch.cat([query, told], -1)
            output, state = trained.model.step(query.to(self.device), state)
            live = [(i, n) for i, n in enumerate(self.mine) if turn < len(said[n])]
            rows, numbers = (torch.tensor(part, device=output.device) for part in zip(*live, strict=True))
            last[numbers] = output[rows]
            if turn == 0:
                first[numbers] = output[rows]
            self._advance(last, used)
        return first, last

    def _advance(self, answers: Tensor, used: dict[int, list[str]]) -> None:
        most = max(map(len, used.values())) + 1
        top = self.bed.top(answers, most)
        for n, images in used.items():
            ranked = self.bed.images(n, top[n])
            images.append(next((i for i in ranked if i not in images and i in self.place), images[-1]))
