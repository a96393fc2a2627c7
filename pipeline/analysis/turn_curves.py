"""``turns``: recall after every turn, hits so far and best rank so far of a spec's trained models, mean over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from manifests.errors import IncompleteError
from pipeline.analysis.drawing import MARKERS, check_suffixes, new_figure, save_figure
from pipeline.core.text_table import aligned
from pipeline.evaluation.turns import TurnRanks, rank_turns
from pipeline.jobs.experiment import Experiment
from pipeline.jobs.identities import Run
from pipeline.training.errors import MissingFeaturesError
from pipeline.training.models import MemoryModel
from pipeline.training.validate import embed_turns
from pipeline.training.views import first_turns


@dataclass(frozen=True)
class ModelCurves:
    """Curves of one model. ``first``: turn of the first value. ``curves``: metric -> mean over seeds per turn."""

    model: str
    seeds: tuple[int, ...]
    first: int
    curves: dict[str, list[float]]


@dataclass(frozen=True)
class TurnCurves:
    dataset: str
    sessions: int
    turns: int
    references: str
    models: tuple[ModelCurves, ...]

    def as_dict(self) -> dict[str, Any]:
        return {**vars(self), "models": [vars(m) for m in self.models]}

    def text(self, k: int = 10) -> str:
        """Return three tables of one row per model and one column per turn."""
        out = [f"{self.dataset}: {self.sessions:,} test sessions, final target, references {self.references}"]
        labels = {f"R@{k}": "after the turn, %", f"Hits@{k}": "after the turn or an earlier one, %"}
        for metric, what in (labels | {"best": "mean log2 of the best rank so far"}).items():
            rows = [[f"{metric}, {what}", "seeds", *(f"turn {t}" for t in range(1, self.turns + 1))]]
            for m in self.models:
                values = ["-"] * (m.first - 1) + [f"{v:.1f}" for v in m.curves[metric]]
                rows.append([m.model, str(len(m.seeds)), *values])
            out += ["", *aligned(rows)]
        return "\n".join(out)


def turn_curves(
    experiment: Experiment, models: Sequence[str] = (), seeds: Sequence[int] | None = None, k: int = 10
) -> TurnCurves:
    """Rank the final target after every turn with the finished runs of a spec.

    Raises IncompleteError if no run is trained, or a model ranks by scores of its own, which have no value per turn.
    """
    by_model: dict[str, list[Run]] = {}
    for run in experiment.finished(experiment.current_runs(models, seeds)):
        by_model.setdefault(run.asked, []).append(run)
    found, sessions = [], 0
    for model, runs in by_model.items():
        ranked = [_ranked(experiment, run) for run in runs]
        sessions = len(ranked[0].sessions)
        curves = [r.curves(tuple(dict.fromkeys((1, 5, 10, k)))) for r in ranked]
        mean = {name: np.mean([c[name] for c in curves], axis=0).tolist() for name in curves[0]}
        found.append(ModelCurves(model, tuple(run.seed for run in runs), ranked[0].first, mean))
    turns = max(m.first + len(m.curves["n"]) - 1 for m in found)
    return TurnCurves(experiment.dataset.name, sessions, turns, experiment.spec.references, tuple(found))


def _ranked(experiment: Experiment, run: Run) -> TurnRanks:
    model = experiment.model(run)
    if model.scores:
        raise IncompleteError(f"{run.asked} ranks by scores after the last turn: leave it out with --model")
    experiment.need(run.options)
    outputs = _outputs(experiment, model)
    lengths = experiment.test.lengths.tolist()
    return rank_turns(outputs, lengths, experiment.test.sessions, experiment.candidates, experiment.spec.references)


def _outputs(experiment: Experiment, model: MemoryModel) -> np.ndarray:
    """Return f'_qry of the test sessions, [S, T, D]; [S, 1, D] for a model of one query without rows for the prefixes."""
    test = experiment.test
    if model.reads == "concatenated" and not model.dialogs and test.has_concatenated:
        try:
            prefixes = [first_turns(test, experiment.store, turns) for turns in range(1, test.turns + 1)]
            if all(len(part) == len(test) for part in prefixes):
                return np.concatenate([embed_turns(model, part).cpu().numpy() for part in prefixes], axis=1)
        except MissingFeaturesError:
            pass
        again = experiment.spec.command("extract", "--set", "prefixes=true")
        experiment.log(f"note: {model.name} is shown after the last turn alone; for every turn run `{again}`")
    return embed_turns(model, test).cpu().numpy()


def draw_turn_curves(found: TurnCurves, paths: Sequence[Path], k: int = 10) -> None:
    """Draw R@K and Hits@K over the turns, one line per model, to ``paths``."""
    check_suffixes(paths)
    figure = new_figure(9, 3.8)
    axes = figure.subplots(1, 2, sharey=True)
    titles = {f"R@{k}": f"R@{k} after the turn", f"Hits@{k}": f"Hits@{k} up to the turn"}
    for panel, (metric, title) in zip(axes, titles.items(), strict=True):
        for n, m in enumerate(found.models):
            turns = range(m.first, m.first + len(m.curves[metric]))
            panel.plot(turns, m.curves[metric], marker=MARKERS[n % len(MARKERS)], ms=4, lw=1.3, label=m.model)
        panel.set_title(title, fontsize=10)
        panel.set_xlabel("turn")
        panel.set_xticks(range(1, found.turns + 1))
        panel.grid(alpha=0.3)
    axes[0].set_ylabel("percent of test sessions")
    axes[1].legend(fontsize=8, ncols=2)
    figure.suptitle(f"{found.dataset}: {found.sessions:,} test sessions", fontsize=11)
    save_figure(figure, paths)
