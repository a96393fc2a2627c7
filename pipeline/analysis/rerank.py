"""Re-rank the top candidates of finished runs by cached features, and fit a cutoff that may reject all candidates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from manifests.errors import IncompleteError
from manifests.identity import stack_keys, text_key
from manifests.schema import Session
from pipeline.analysis.history import own_targets
from pipeline.evaluation.evaluate import ALL, Candidates
from pipeline.evaluation.metrics import metrics_of, summarize
from pipeline.evaluation.ranking import score_ranks, unit_rows
from pipeline.jobs.experiment import Experiment
from pipeline.jobs.identities import Run
from pipeline.training.data import SessionFeatures
from pipeline.training.errors import FeatureError
from pipeline.training.models import MemoryModel
from pipeline.training.validate import embed, score

HAVE_GRID, AVOID_GRID = (0.0, 0.05, 0.1, 0.2, 0.3), (0.0, 0.05, 0.1, 0.2)


def constraint_scores(texts: np.ndarray, lengths: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """Return the mean cosine of each candidate with each session's constraints, float32 [S, G].

    texts: [S, N, E], text rows; lengths: int [S], text rows per session (0: no constraint, score 0); candidates: [G, E],
    rows of the image tower, in the space of the text rows.
    """
    if texts.ndim != 3 or candidates.ndim != 2 or texts.shape[2] != candidates.shape[1]:
        what = f"text rows {list(texts.shape)} and candidates {list(candidates.shape)} must be [S, N, E] and [G, E]:"
        raise FeatureError(f"{what} use an extractor whose text and image towers share a space")
    present = np.arange(texts.shape[1]) < np.asarray(lengths)[:, None]
    sums = (unit_rows(texts) * present[..., None]).sum(1) / np.maximum(1, present.sum(1))[:, None]
    return (sums @ unit_rows(candidates).T).astype(np.float32)


def rerank(
    scores: np.ndarray,
    must_have: np.ndarray | None = None,
    must_avoid: np.ndarray | None = None,
    top: int = 50,
    have_weight: float = 0.2,
    avoid_weight: float = 0.2,
) -> np.ndarray:
    """Re-rank the ``top`` candidates of each session as in SoFT; the others follow in their original order.

    The new score of a top candidate is score + have_weight * must_have - avoid_weight * must_avoid. scores: [S, G],
    higher is better, e.g. cosines; must_have, must_avoid: [S, G] as ``constraint_scores`` gives. Returns float32 [S, G]
    for ``score_ranks``. All candidates that tie with the last re-ranked one are re-ranked too.
    """
    scores = np.asarray(scores, dtype=np.float32)
    border = -np.partition(-scores, min(top, scores.shape[1]) - 1, axis=1)[:, min(top, scores.shape[1]) - 1]
    head = scores >= border[:, None]
    new = scores.copy()
    if must_have is not None:
        new += have_weight * must_have
    if must_avoid is not None:
        new -= avoid_weight * must_avoid
    # Moves the whole tail below the lowest top candidate; the order within the tail is unchanged.
    lowest = np.where(head, new, np.inf).min(1, keepdims=True)
    highest = np.where(head, -np.inf, scores).max(1, keepdims=True)
    drop = np.where(np.isfinite(highest), np.maximum(0, highest - lowest + 1), 0)
    return np.where(head, new, scores - drop).astype(np.float32)


@dataclass(frozen=True)
class RelevanceCutoff:
    """Map from a session's scores to probabilities of relevance, with one global threshold (Cosine Adapter).

    p = sigmoid(a(q) * cos + b(q)), a(q) = softplus(w_a'q + c_a), b(q) = w_b'q + c_b: scale and offset of the cosine
    depend on the query. The order of scores within a session is unchanged. If no candidate is above the threshold, the
    answer is empty.
    """

    weight: Tensor  # [2, D]
    bias: Tensor  # [2]
    threshold: float

    def probabilities(self, queries: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """Return probabilities, float32 [S, G] in (0, 1), of f'_qry [S, D] and its cosines [S, G]."""
        unit = F.normalize(torch.as_tensor(queries, dtype=torch.float32), dim=-1)
        cosines = torch.as_tensor(scores, dtype=torch.float32)
        return torch.sigmoid(_logits(self.weight, self.bias, unit, cosines)).numpy()

    def keeps(self, queries: np.ndarray, scores: np.ndarray) -> np.ndarray:
        return self.probabilities(queries, scores) >= self.threshold


def fit_cutoff(
    queries: np.ndarray, scores: np.ndarray, target_index: np.ndarray, recall: float = 0.9
) -> RelevanceCutoff:
    """Fit the map on sessions with known targets, and set the threshold that keeps ``recall`` of the targets.

    Loss: binary cross-entropy; the target and all other candidates together have equal weight. Full-batch Adam is
    deterministic. Fit on validation sessions, never on test sessions. queries: [S, D], f'_qry(N); scores: [S, G], their
    cosines; target_index: int [S]; recall: share of the targets that the threshold keeps, in (0, 1].
    """
    unit = F.normalize(torch.as_tensor(queries, dtype=torch.float32), dim=-1)
    cosines = torch.as_tensor(scores, dtype=torch.float32)
    own = torch.as_tensor(target_index, dtype=torch.int64)[:, None]
    truth = torch.zeros_like(cosines).scatter_(1, own, 1.0)
    weights = torch.full_like(cosines, 1 / max(1, cosines.shape[1] - 1)).scatter_(1, own, 1.0)
    weight = torch.zeros(2, unit.shape[1], requires_grad=True)
    bias = torch.tensor([10.0, -5.0], requires_grad=True)
    optimizer = torch.optim.AdamW([weight, bias], lr=0.05, weight_decay=0.01)
    for _ in range(300):
        logits = _logits(weight, bias, unit, cosines)
        optimizer.zero_grad()
        (F.binary_cross_entropy_with_logits(logits, truth, weights, reduction="sum") / len(cosines)).backward()
        optimizer.step()
    with torch.no_grad():
        found = torch.sigmoid(_logits(weight, bias, unit, cosines)).gather(1, own).squeeze(1).numpy()
    kept = np.sort(found)[::-1][int(np.ceil(recall * len(found))) - 1]
    return RelevanceCutoff(weight.detach(), bias.detach(), float(kept))


def cutoff_report(kept: np.ndarray, target_index: np.ndarray) -> dict[str, float]:
    """Return percentages of sessions with kept target and with empty answer, and the mean number of candidates."""
    own = np.take_along_axis(kept, np.asarray(target_index, dtype=np.int64)[:, None], axis=1)
    shares = {"target kept": 100.0 * float(own.mean()), "nothing relevant": 100.0 * float((~kept.any(1)).mean())}
    return {**shares, "candidates": float(kept.sum(1).mean())}


def _logits(weight: Tensor, bias: Tensor, unit: Tensor, cosines: Tensor) -> Tensor:
    slope, offset = (unit @ weight.T + bias).unbind(1)
    return F.softplus(slope)[:, None] * cosines + offset[:, None]


@dataclass(frozen=True)
class _Group:
    """Sessions of one category. rows: their indices, int64 [n]; have, avoid: constraint scores, float32 [n, G]."""

    rows: np.ndarray
    gallery: Candidates
    target: np.ndarray
    have: np.ndarray
    avoid: np.ndarray


class Reranker:
    """Sessions of a spec with their must-have and must-avoid constraints, loaded once for all runs.

    Must have: text rows of the session's feedback. Must avoid: image rows of its reference images, which the user asked
    to change. Both are compared with the candidates' image rows; all rows are from the extractor's towers.
    """

    def __init__(self, experiment: Experiment):
        self.experiment, self._groups = experiment, dict[str, list[_Group]]()
        self.backbone = experiment.workspace.backbone(experiment.spec, experiment.dataset)
        if not {"text", "image"} <= set(self.backbone.tables):
            what = f"{self.backbone.path} has no text and image rows (tables: {', '.join(self.backbone.tables)}):"
            raise IncompleteError(f"{what} re-ranking needs an extractor with two towers")
        self.features("validation")

    def features(self, part: str) -> SessionFeatures:
        """Return the features of ``part``: "validation" or "test". Raises IncompleteError without validation sessions."""
        found = self.experiment.test if part == "test" else self.experiment.parts[1]
        if found is None:
            raise IncompleteError("re-ranking is fitted on validation sessions: set validation.fraction, e.g. 0.1")
        return found

    def groups(self, part: str) -> list[_Group]:
        """Return the groups of ``part``: "validation" (gallery: that split's targets of the category) or "test"."""
        if part not in self._groups:
            features = self.features(part)
            galleries = self.experiment.candidates if part == "test" else own_targets(features)
            self._groups[part] = [self._group(features.sessions, name, galleries[name]) for name in galleries]
        return [group for group in self._groups[part] if len(group.rows)]

    def _group(self, sessions: Sequence[Session], category: str, gallery: Candidates) -> _Group:
        rows = [n for n, s in enumerate(sessions) if s.category == category and s.target in gallery.index]
        mine, catalogue = [sessions[n] for n in rows], self.backbone.catalogue()
        images = self._rows("image", [[catalogue[i] for i in gallery.images]])[0]
        lengths = np.array([len(s.turns) for s in mine], dtype=np.int64)
        texts = self._rows("text", [[text_key(t.text) for t in s.turns] for s in mine])
        references = self._rows("image", [[catalogue[t.reference] for t in s.turns] for s in mine])
        have, avoid = (constraint_scores(given, lengths, images) for given in (texts, references))
        target = np.array([gallery.index[s.target] for s in mine], dtype=np.int64)
        return _Group(np.array(rows, dtype=np.int64), gallery, target, have, avoid)

    def _rows(self, table: str, keys: Sequence[Sequence[bytes]]) -> np.ndarray:
        """Return rows as float32 [len(keys), longest, E]; shorter lists are padded with their last row."""
        longest = max((len(k) for k in keys), default=1)
        flat = [k[min(n, len(k) - 1)] for k in keys for n in range(longest)]
        rows = self.backbone.find(table, stack_keys(flat)) if flat else np.empty(0, dtype=np.int64)
        found = np.asarray(self.backbone.gather(table, rows), dtype=np.float32)
        return found.reshape(len(keys), longest, self.backbone.tables[table].dim)

    def scores(self, model: MemoryModel, part: str) -> list[np.ndarray]:
        """Return the model's scores [n, G] of each group."""
        features = self.features(part)
        found = []
        for group in self.groups(part):
            candidates = torch.from_numpy(group.gallery.features).to(features.device)
            found.append(score(model, features.subset(group.rows.tolist()), candidates).cpu().numpy())
        return found

    def ranks(self, scores: Sequence[np.ndarray], part: str, top: int, have: float, avoid: float) -> np.ndarray:
        """Return the target rank of every session after re-ranking, int64, in group order."""
        found = []
        for group, given in zip(self.groups(part), scores, strict=True):
            new = rerank(given, group.have, group.avoid, top, have, avoid) if have or avoid else given
            found.append(score_ranks(new, group.target, group.gallery.features))
        return np.concatenate(found)

    def report(self, run: Run, top: int, have: float | None, avoid: float | None, keep: float) -> dict[str, Any]:
        """Return the recall of a finished run before and after, and the test effect of a cutoff fitted on validation.

        ``top`` candidates are re-ranked; a weight of None is chosen on validation sessions. ``keep``: share of the
        validation targets that the cutoff keeps. Raises IncompleteError for a run that is not trained.
        """
        model = self.experiment.model(run)
        validation, test = self.scores(model, "validation"), self.scores(model, "test")
        grid = product(HAVE_GRID if have is None else (have,), AVOID_GRID if avoid is None else (avoid,))

        def gain(pair: tuple[float, float]) -> float:
            return metrics_of(self.ranks(validation, "validation", top, *pair), (5, 8))["mean"]

        tried = {pair: gain(pair) for pair in grid}
        have, avoid = max(tried, key=lambda p: (tried[p], -p[0] - p[1]))  # ties: the smallest weights
        plain, after = (self.ranks(test, "test", top, *p) for p in ((0.0, 0.0), (have, avoid)))
        about = {"model": run.model, "seed": run.seed, "run": self.experiment.folder(run).id, "top": top}
        held = {"before": gain((0.0, 0.0)), "after": tried[have, avoid]}
        tested = {"before": self._metrics(plain), "after": self._metrics(after)}
        chosen = {"have": have, "avoid": avoid, "validation": held, "test": tested}
        return {**about, **chosen, "cutoff": self._cutoff(model, keep)}

    def _metrics(self, ranks: np.ndarray) -> dict[str, dict[str, float]]:
        sessions = [self.experiment.test.sessions[n] for g in self.groups("test") for n in g.rows]
        found: dict[str, dict[str, float]] = {}
        for name, members in self.experiment.subsets.items():
            keep = np.array([s.id in members for s in sessions])
            if keep.any():
                labels = [s.category for s, k in zip(sessions, keep, strict=True) if k]
                found[name] = summarize(ranks[keep], labels, self.experiment.dataset.averaging)["overall"]
        return found

    def _cutoff(self, model: MemoryModel, keep: float) -> dict[str, float]:
        features = self.features("validation")
        own = features.target_rows[torch.arange(len(features)), features.lengths - 1]
        used, target = torch.unique(own, return_inverse=True)
        scores = score(model, features, features.targets[used]).cpu().numpy()
        cutoff = fit_cutoff(embed(model, features).cpu().numpy(), scores, target.cpu().numpy(), keep)
        queries, totals = embed(model, self.experiment.test).cpu().numpy(), []
        for group, given in zip(self.groups("test"), self.scores(model, "test"), strict=True):
            totals.append((cutoff_report(cutoff.keeps(queries[group.rows], given), group.target), len(group.rows)))
        sessions = sum(n for _, n in totals)
        return {key: sum(r[key] * n for r, n in totals) / sessions for key in totals[0][0]}


def rerank_runs(experiment: Experiment, runs: Sequence[Run], **options: Any) -> list[dict[str, Any]]:
    """Return ``Reranker.report`` (with ``options``) of every finished run of ``runs``; log those not trained yet.

    Raises IncompleteError if none is trained, or if there are no validation sessions or towers.
    """
    reranker = Reranker(experiment)
    return [reranker.report(run, **options) for run in experiment.finished(runs)]


def reports_text(reports: Sequence[dict[str, Any]]) -> str:
    lines = []
    for r in reports:
        v, name = r["validation"], f"{r['model']} seed {r['seed']}"
        head = f"{name}: top {r['top']}, must have {r['have']}, must avoid {r['avoid']};"
        lines.append(f"{head} validation mean of R@5 and R@8 {v['before']:.1f} -> {v['after']:.1f}")
        for subset, before in r["test"]["before"].items():
            after = r["test"]["after"][subset]
            if subset != ALL and before["n"] == r["test"]["before"][ALL]["n"]:
                continue
            shown = "  ".join(f"{k} {before[k]:.1f} -> {after[k]:.1f}" for k in ("R@5", "R@8", "MRR"))
            lines.append(f"  {subset:17} {before['n']:5} sessions  {shown}")
        c = r["cutoff"]
        text = f"  cut-off: target kept in {c['target kept']:.1f}% of the test sessions, nothing relevant in"
        lines.append(f"{text} {c['nothing relevant']:.1f}%, {c['candidates']:.1f} candidates left a session")
    return "\n".join(lines)
