"""``figure leakage``: test recall on all, leaked and clean sessions over train recall (ablation ``memorisation``)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from cache.files import write_json
from manifests.ablation_spec import Point
from manifests.errors import IncompleteError
from manifests.table_spec import ResultsTable, load_table_spec
from pipeline.analysis.ablation.plan import Place, not_evaluated, tasks_of
from pipeline.analysis.ablation.run import variants_of
from pipeline.analysis.cells import mean_and_std, spread_text
from pipeline.analysis.drawing import MARKERS, new_figure, save_figure
from pipeline.core.text_table import aligned
from pipeline.evaluation.files import load_results
from pipeline.evaluation.metrics import metrics_of
from pipeline.jobs.experiment import Experiment
from pipeline.jobs.identities import Run
from pipeline.training.validate import recalls

PARTS = ("all", "leaked", "clean")  # clean: the last pair is in no train session
METRIC = "mean"  # of R@5 and R@8
PAPER = {"avg": "avg", "ewma": "EWMA", "lstm": "LSTM", "cm_ntm": "FashionNTM"}
LINES = ("avg", "EWMA", "FashionNTM")  # of the paper, in the curves; the LSTM's is within a point of the last one


@dataclass(frozen=True)
class MemorisedPoint:
    """One composer and memory model. Values: mean and std over ``seeds``, percent, mean of R@5 and R@8.

    ``train``: on the train sessions among their own targets. ``test``: part of the test sessions -> (mean, std).
    """

    composer: str
    model: str
    label: str
    seeds: tuple[int, ...]
    train: float
    test: dict[str, tuple[float, float]]
    runs: tuple[str, ...]


@dataclass(frozen=True)
class Memorisation:
    """The study: points with runs, and the labels of those without."""

    title: str
    points: tuple[MemorisedPoint, ...]
    absent: tuple[str, ...]
    paper: dict[str, float]

    def as_dict(self) -> dict[str, Any]:
        return {**vars(self), "points": [vars(p) for p in self.points]}

    def text(self) -> str:
        rows = [["composer", "model", "seeds", "train", *PARTS]]
        for p in self.points:
            values = (spread_text(*p.test[part]) for part in PARTS)
            rows.append([p.composer, p.label, str(len(p.seeds)), f"{p.train:.1f}", *values])
        lines = [f"{self.title}: mean of R@5 and R@8, %", "", *aligned(rows, left=2)]
        lines += [f"paper, all sessions: {', '.join(f'{k} {v:.1f}' for k, v in self.paper.items())}"]
        if self.absent:
            shown = ", ".join(self.absent[:4]) + (", ..." if len(self.absent) > 4 else "")
            lines.append(f"without a run: {len(self.absent)} points ({shown})")
        return "\n".join(lines)


def memorisation(place: Place) -> Memorisation:
    """Collect the study from the evaluated runs of an ablation. Raises IncompleteError if there is none."""
    points, absent = [], []
    labels = list(place.ablation.composers) or [""]
    for composer, part in zip(labels, variants_of(place), strict=True):
        tasks = tasks_of(part.ablation, part.spec)
        grid: dict[int, Point] = {point.number: point for point, _, _ in tasks}
        try:  # variants differ in the composer alone
            experiment = Experiment(part.spec, place.dataset, part.workspace, "cpu")
            experiment.store  # noqa: B018 - raises if nothing is composed
        except IncompleteError:
            absent += [f"{composer} {point.label}" for point in grid.values()]
            continue
        for number, point in grid.items():
            runs = [run for p, run, _ in tasks if p.number == number and experiment.evaluation(run) is not None]
            if runs:
                points.append(_point(experiment, composer, point, runs))
            else:
                absent.append(f"{composer} {point.label}")
    if not points:
        raise not_evaluated(place)
    return Memorisation(place.ablation.title, tuple(points), tuple(absent), _paper_values())


def _point(experiment: Experiment, composer: str, point: Point, runs: Sequence[Run]) -> MemorisedPoint:
    experiment.require_train("and their recall is half of the figure")
    train = fmean(recalls(experiment.model(run), experiment.parts[0])["mean"] for run in runs)
    found = [part_values(experiment, run) for run in runs]
    test = {part: mean_and_std([values[part] for values in found]) for part in PARTS}
    seeds, ids = tuple(run.seed for run in runs), tuple(experiment.folder(run).id for run in runs)
    return MemorisedPoint(composer, point.model, point.label, seeds, train, test, ids)


def part_values(experiment: Experiment, run: Run) -> dict[str, float]:
    """Return part -> mean over categories of the mean of R@5 and R@8, from the run's ranks."""
    result = load_results(experiment.result_files(run).results)
    clean = result.subsets["last pair unseen"]
    categories = np.array(result.categories, dtype=object)
    members = {"all": np.ones(len(clean), dtype=bool), "leaked": ~clean, "clean": clean}
    out = {}
    for part, chosen in members.items():
        ranks = [result.ranks[chosen & (categories == c)] for c in dict.fromkeys(result.categories)]
        out[part] = fmean(metrics_of(r)[METRIC] for r in ranks if len(r))
    return out


def _paper_values() -> dict[str, float]:
    table = load_table_spec("2")
    assert isinstance(table, ResultsTable)
    rows = {row.name: row.paper["overall"][-1] for row in table.rows if "overall" in row.paper}
    return {label: rows[name] for name, label in PAPER.items() if name in rows}


def draw_memorisation(study: Memorisation, folder: Path) -> list[Path]:
    """Draw leakage-curves and leakage-table (PNG and SVG) and write leakage.json; return the paths."""
    curves, table = ([folder / f"leakage-{n}{suffix}" for suffix in (".png", ".svg")] for n in ("curves", "table"))
    _curves(study, curves)
    _bars(study, table)
    write_json(folder / "leakage.json", study.as_dict(), allow_nan=True)
    return [*curves, *table, folder / "leakage.json"]


COLORS = {"all": "#222222", "leaked": "#c0392b", "clean": "#1f77b4"}


def _curves(study: Memorisation, paths: list[Path]) -> None:
    """Test recall over train recall: one panel per part, one line per model with runs on several composers."""
    figure = new_figure(10.5, 3.9)
    axes = figure.subplots(1, 3, sharey=True)
    labels = list(dict.fromkeys(p.label for p in study.points))
    for panel, part in zip(axes, PARTS, strict=True):
        for n, label in enumerate(labels):
            mine = sorted((p for p in study.points if p.label == label), key=lambda p: p.train)
            x, y = [p.train for p in mine], [p.test[part][0] for p in mine]
            line = panel.plot(x, y, marker=MARKERS[n % len(MARKERS)], ms=4, lw=1.2, label=label)[0]
            panel.errorbar(x, y, [p.test[part][1] for p in mine], fmt="none", color=line.get_color(), lw=1)
        if part == "all":
            for label, value in ((name, study.paper[name]) for name in LINES if name in study.paper):
                panel.axhline(value, color="#888888", lw=0.8, ls="--")
                place = (0.02, value), (0, 2), ("axes fraction", "data"), "offset points"
                panel.annotate(f"paper: {label}", *place, fontsize=7)
        titles = {"all": "all", "leaked": "last pair is a train pair", "clean": "last pair unseen"}
        panel.set_title(titles[part], fontsize=10)
        panel.set_xlabel("train recall, %")
        panel.grid(alpha=0.3)
    axes[0].set_ylabel("test recall, mean of R@5 and R@8, %")
    axes[2].legend(fontsize=7)
    save_figure(figure, paths)


def _bars(study: Memorisation, paths: list[Path]) -> None:
    """For the composer with the most models (the last of several): recall of each model on the three parts."""
    counts = {c: sum(p.composer == c for p in study.points) for c in dict.fromkeys(p.composer for p in study.points)}
    most = [c for c, n in counts.items() if n == max(counts.values())][-1]
    mine = [p for p in study.points if p.composer == most]
    figure = new_figure(8, 3.6)
    axis = figure.subplots()
    for n, part in enumerate(PARTS):
        x = np.arange(len(mine)) + 0.27 * (n - 1)
        means, spread = [p.test[part][0] for p in mine], [p.test[part][1] for p in mine]
        axis.bar(x, means, 0.25, yerr=spread, color=COLORS[part], label=part, error_kw={"lw": 1})
    for n, p in enumerate(mine):
        if PAPER.get(p.model) in study.paper:
            axis.plot([n - 0.45, n + 0.45], [study.paper[PAPER[p.model]]] * 2, color="#e67e22", lw=2)
    if study.paper:
        axis.plot([], [], color="#e67e22", lw=2, label="paper, all")
    axis.margins(y=0.2)  # room for the legend
    axis.legend(fontsize=8, ncols=4, loc="upper center")
    axis.set_xticks(range(len(mine)), [p.label for p in mine], fontsize=8)
    axis.set_ylabel("mean of R@5 and R@8, %")
    axis.set_title(f"composer {most}" if most else study.title, fontsize=10)
    axis.grid(axis="y", alpha=0.3)
    save_figure(figure, paths)
