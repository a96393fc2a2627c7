"""Retrieval-time components on finished runs: must-have / must-avoid re-ranking and a relevance cutoff."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np
import torch

from cache import Store
from manifests.errors import IncompleteError
from manifests.identity import stack_keys, text_key
from manifests.schema import Dataset, Gallery, RunSpec, Session
from pipeline.analysis.reranking import constraint_scores, cutoff_report, fit_cutoff, rerank
from pipeline.core.workspace import Workspace
from pipeline.evaluation.evaluate import ALL, Candidates, load_candidates
from pipeline.evaluation.metrics import metrics_of, summarise
from pipeline.evaluation.ranking import score_ranks
from pipeline.jobs.identities import Run, asked_runs
from pipeline.jobs.stage2 import Experiment, Log, silent
from pipeline.training.checkpoint import load_model
from pipeline.training.models import MemoryModel
from pipeline.training.validate import embed, score

HAVE_GRID, AVOID_GRID = (0.0, 0.05, 0.1, 0.2, 0.3), (0.0, 0.05, 0.1, 0.2)


@dataclass(frozen=True)
class Weights:
    """Re-ranking options: ``top`` candidates are re-ranked; a weight of None is chosen on validation sessions."""

    top: int = 50
    have: float | None = None
    avoid: float | None = None
    keep: float = 0.9  # share of the validation targets that the cutoff keeps


@dataclass(frozen=True)
class _Group:
    """Sessions of one category. rows: their indices, int64 [n]; have, avoid: constraint scores, float32 [n, G]."""

    rows: np.ndarray
    gallery: Candidates
    target: np.ndarray
    have: np.ndarray
    avoid: np.ndarray


@dataclass
class Reranker:
    """Sessions of a spec with their must-have and must-avoid constraints, loaded once for all runs.

    Must have: text rows of the session's feedback. Must avoid: image rows of its reference images, which the user asked
    to change. Both are compared with the candidates' image rows; all rows are from the extractor's towers.
    """

    stage: Experiment
    backbone: Store
    _groups: dict[str, list[_Group]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not {"text", "image"} <= set(self.backbone.tables):
            raise IncompleteError(
                f"{self.backbone.path} has no text and image rows (tables: {', '.join(self.backbone.tables)}): "
                "re-ranking needs an extractor with two towers"
            )
        if self.stage.parts[1] is None:
            raise IncompleteError("re-ranking is fitted on validation sessions: set validation.fraction, e.g. 0.1")

    def groups(self, part: str) -> list[_Group]:
        """Return the groups of ``part``: "validation" (gallery: that split's targets of the category) or "test"."""
        if part not in self._groups:
            features = self.stage.test if part == "test" else self.stage.parts[1]
            galleries = self.stage.candidates if part == "test" else self._own_targets(features.sessions)
            self._groups[part] = [self._group(features.sessions, name, galleries[name]) for name in galleries]
        return [group for group in self._groups[part] if len(group.rows)]

    def _own_targets(self, sessions: Sequence[Session]) -> dict[str, Candidates]:
        images: dict[str, dict[str, None]] = {}
        for session in sessions:
            images.setdefault(session.category, {}).update(dict.fromkeys(session.targets))
        return load_candidates(
            self.stage.store, [Gallery(category=c, split="train", images=tuple(i)) for c, i in images.items()]
        )

    def _group(self, sessions: Sequence[Session], category: str, gallery: Candidates) -> _Group:
        rows = [n for n, s in enumerate(sessions) if s.category == category and s.target in gallery.index]
        mine, catalogue = [sessions[n] for n in rows], self.backbone.catalogue()
        images = self._rows("image", [[catalogue[i] for i in gallery.images]])[0]
        lengths = np.array([len(s.turns) for s in mine], dtype=np.int64)
        texts = self._rows("text", [[text_key(t.text) for t in s.turns] for s in mine])
        references = self._rows("image", [[catalogue[t.reference] for t in s.turns] for s in mine])
        return _Group(
            np.array(rows, dtype=np.int64),
            gallery,
            np.array([gallery.index[s.target] for s in mine], dtype=np.int64),
            constraint_scores(texts, lengths, images),
            constraint_scores(references, lengths, images),
        )

    def _rows(self, table: str, keys: Sequence[Sequence[bytes]]) -> np.ndarray:
        """Return rows as float32 [len(keys), longest, E]; shorter lists are padded with their last row."""
        longest = max((len(k) for k in keys), default=1)
        flat = [k[min(n, len(k) - 1)] for k in keys for n in range(longest)]
        rows = self.backbone.find(table, stack_keys(flat)) if flat else np.empty(0, dtype=np.int64)
        found = np.asarray(self.backbone.gather(table, rows), dtype=np.float32)
        return found.reshape(len(keys), longest, self.backbone.tables[table].dim)

    def scores(self, model: MemoryModel, part: str) -> list[np.ndarray]:
        """Return the model's scores [n, G] of each group."""
        features = self.stage.test if part == "test" else self.stage.parts[1]
        return [
            score(model, features.subset(g.rows.tolist()), torch.from_numpy(g.gallery.features).to(features.device))
            .cpu()
            .numpy()
            for g in self.groups(part)
        ]

    def ranks(self, scores: Sequence[np.ndarray], part: str, top: int, have: float, avoid: float) -> np.ndarray:
        """Return the target rank of every session after re-ranking, int64, in group order."""
        found = []
        for group, given in zip(self.groups(part), scores, strict=True):
            new = rerank(given, group.have, group.avoid, top, have, avoid) if have or avoid else given
            found.append(score_ranks(new, group.target, group.gallery.features))
        return np.concatenate(found)

    def report(self, run: Run, weights: Weights) -> dict[str, Any]:
        """Return the recall of a finished run before and after, and the test effect of a cutoff fitted on validation.

        Raises IncompleteError for a run that is not trained.
        """
        folder = self.stage.folder(run)
        if folder.state != "finished":
            raise IncompleteError(f"run {folder.id} is {folder.state}: run `{self.stage.train_command(run)}`")
        model = load_model(folder.path, self.stage.device)
        validation, test = self.scores(model, "validation"), self.scores(model, "test")
        grid = product(
            HAVE_GRID if weights.have is None else (weights.have,),
            AVOID_GRID if weights.avoid is None else (weights.avoid,),
        )

        def gain(pair: tuple[float, float]) -> float:
            return metrics_of(self.ranks(validation, "validation", weights.top, *pair), (5, 8))["mean"]

        tried = {pair: gain(pair) for pair in grid}
        have, avoid = max(tried, key=lambda p: (tried[p], -p[0] - p[1]))  # ties: the smallest weights
        plain, after = (self.ranks(test, "test", weights.top, *p) for p in ((0.0, 0.0), (have, avoid)))
        return {
            "model": run.model,
            "seed": run.seed,
            "run": folder.id,
            "top": weights.top,
            "have": have,
            "avoid": avoid,
            "validation": {"before": gain((0.0, 0.0)), "after": tried[have, avoid]},
            "test": {"before": self._metrics(plain), "after": self._metrics(after)},
            "cutoff": self._cutoff(model, weights.keep),
        }

    def _metrics(self, ranks: np.ndarray) -> dict[str, dict[str, float]]:
        sessions = [self.stage.test.sessions[n] for g in self.groups("test") for n in g.rows]
        found = {}
        for name, members in self.stage.subsets.items():
            keep = np.array([s.id in members for s in sessions])
            if keep.any():
                labels = [s.category for s, k in zip(sessions, keep, strict=True) if k]
                found[name] = summarise(ranks[keep], labels, self.stage.dataset.averaging)["overall"]
        return found

    def _cutoff(self, model: MemoryModel, keep: float) -> dict[str, float]:
        features = self.stage.parts[1]
        own = features.target_rows[torch.arange(len(features)), features.lengths - 1]
        used, target = torch.unique(own, return_inverse=True)
        scores = score(model, features, features.targets[used]).cpu().numpy()
        cutoff = fit_cutoff(embed(model, features).cpu().numpy(), scores, target.cpu().numpy(), keep)
        queries, totals = embed(model, self.stage.test).cpu().numpy(), []
        for group, given in zip(self.groups("test"), self.scores(model, "test"), strict=True):
            totals.append((cutoff_report(cutoff.keeps(queries[group.rows], given), group.target), len(group.rows)))
        sessions = sum(n for _, n in totals)
        return {key: sum(r[key] * n for r, n in totals) / sessions for key in totals[0][0]}


def rerank_spec(
    spec: RunSpec,
    dataset: Dataset,
    workspace: Workspace,
    models: Sequence[str] = (),
    seeds: Sequence[int] | None = None,
    weights: Weights | None = None,
    device: str = "auto",
    log: Log = silent,
) -> list[dict[str, Any]]:
    """Return ``Reranker.report`` of every finished requested run; log those not trained yet.

    Raises IncompleteError if none is trained, or if there are no validation sessions or towers.
    """
    stage = Experiment(spec, dataset, workspace, device, log)
    reranker = Reranker(stage, workspace.backbone(spec, dataset))
    return [reranker.report(run, weights or Weights()) for run in stage.finished(asked_runs(spec, models, seeds))]


def reports_text(reports: Sequence[dict[str, Any]]) -> str:
    """Format the reports, a few lines per run."""
    lines = []
    for r in reports:
        name = f"{r['model']} seed {r['seed']}"
        v = r["validation"]
        lines.append(
            f"{name}: top {r['top']}, must have {r['have']}, must avoid {r['avoid']}; "
            f"validation mean of R@5 and R@8 {v['before']:.1f} -> {v['after']:.1f}"
        )
        for subset, before in r["test"]["before"].items():
            after = r["test"]["after"][subset]
            if subset != ALL and before["n"] == r["test"]["before"][ALL]["n"]:
                continue
            shown = "  ".join(f"{k} {before[k]:.1f} -> {after[k]:.1f}" for k in ("R@5", "R@8", "MRR"))
            lines.append(f"  {subset:17} {before['n']:5} sessions  {shown}")
        c = r["cutoff"]
        lines.append(
            f"  cut-off: target kept in {c['target kept']:.1f}% of the test sessions, nothing relevant in "
            f"{c['nothing relevant']:.1f}%, {c['candidates']:.1f} candidates left a session"
        )
    return "\n".join(lines)
