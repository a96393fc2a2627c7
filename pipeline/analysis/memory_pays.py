"""``figure memory-pays``: recall over train sessions and turns by memory model (ablation ``memory-pays``)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from cache.files import write_json
from manifests.ablation_spec import Point
from pipeline.analysis.ablation.plan import Place, not_evaluated, tasks_of
from pipeline.analysis.ablation.run import variants_of
from pipeline.analysis.cells import mean_and_std, p_text, spread_text
from pipeline.analysis.compare import Method
from pipeline.analysis.drawing import MARKERS, new_figure, save_figure
from pipeline.core.text_table import aligned
from pipeline.evaluation.files import load_results
from pipeline.evaluation.significance import ALPHA, bootstrap, difference, holm, seed_test, session_values, strata_of
from pipeline.jobs.experiment import Experiment
from pipeline.jobs.identities import Run
from pipeline.training.models import models as registry

METRICS = ("mean", "MRR")
SHOWN = {"mean": "mean of R@5 and R@8", "MRR": "MRR"}
ORACLE = "all requests known"  # last turn alone, of the demo's sessions with ``reminded``
BASELINES = ("ewma", "turn_weights", "lstm")  # every cell's best CM-NTM is compared with these


@dataclass(frozen=True)
class Measured:
    """A method on one dataset, with the options chosen on the validation part.

    ``values``: metric -> (mean, std over ``seeds``), percent, test sessions. ``validation``: mean over the seeds.
    ``options``: those chosen; ``tried``: number of options with runs.
    """

    turns: int
    sessions: int
    variant: str
    model: str
    label: str
    options: str
    tried: int
    seeds: tuple[int, ...]
    validation: float
    values: dict[str, tuple[float, float]]
    runs: tuple[str, ...]


@dataclass(frozen=True)
class Gap:
    """Difference a - b of a metric on one dataset: points, 95% interval and p over sessions (Holm: over its dataset), and p
    over seeds."""

    turns: int
    sessions: int
    metric: str
    a: str
    b: str
    value: float
    low: float
    high: float
    p_sessions: float
    p_holm: float
    seeds: int
    p_seeds: float

    @property
    def significant(self) -> bool:
        return self.p_holm < ALPHA and self.p_seeds < ALPHA

    @property
    def text(self) -> str:
        head = f"{self.turns} turns, {self.sessions:,} sessions, {SHOWN[self.metric]}: {self.a} - {self.b}"
        span = f"{self.value:+.1f} ({self.low:+.1f} to {self.high:+.1f}); over sessions {p_text(self.p_holm)}"
        if self.seeds < 2:
            return f"{head} {span}; one seed allows no test over seeds"
        verdict = "" if self.significant else "not "
        return f"{head} {span}, over {self.seeds} seeds {p_text(self.p_seeds)}: {verdict}significant"


@dataclass(frozen=True)
class MemoryPays:
    """The study. ``absent``: variants of the ablation without any run."""

    title: str
    measured: tuple[Measured, ...]
    differences: tuple[Gap, ...]
    absent: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def text(self) -> str:
        rows = [["turns", "sessions", "method", "options", "seeds", "validation", *(SHOWN[m] for m in METRICS)]]
        for m in self.measured:
            options = m.options + (f" (of {m.tried})" if m.tried > 1 else "")
            seeds = str(len(m.seeds)) if registry.get(m.model).trainable else ""
            about = [str(m.turns), f"{m.sessions:,}", m.label, options, seeds, f"{m.validation:.1f}"]
            rows.append([*about, *(spread_text(*m.values[metric]) for metric in METRICS)])
        lines = [f"{self.title}, %", "", *aligned(rows, left=4), "", *(d.text for d in self.differences)]
        if self.absent:
            lines.append(f"without a run: {', '.join(self.absent)}")
        return "\n".join(lines)


def memory_pays(place: Place) -> MemoryPays:
    """Collect the study from the evaluated runs of an ablation. Raises IncompleteError if there is none."""
    measured: list[Measured] = []
    differences: list[Gap] = []
    absent = []
    for part in variants_of(place):
        found = _variant(part) if part.workspace.note(part.spec) else None
        if found is None or not found[0]:
            absent.append(part.variant or part.spec.name)
            continue
        measured += found[0]
        differences += found[1]
    if not measured:
        raise not_evaluated(place)
    measured.sort(key=lambda m: (m.turns, m.sessions))
    differences.sort(key=lambda d: (d.turns, d.sessions))
    return MemoryPays(place.ablation.title, tuple(measured), tuple(differences), tuple(absent))


def _variant(place: Place) -> tuple[list[Measured], list[Gap]]:
    dataset = place.dataset
    experiment = Experiment(place.spec, dataset, place.workspace, "cpu")
    train = dataset.split("train")
    turns = max(len(s.turns) for s in train)
    found: dict[tuple[str, int], dict[int, tuple[Point, list[Run]]]] = {}
    for point, run, _ in tasks_of(place.ablation, place.spec):
        if experiment.folder(run).state == "finished" and experiment.evaluation(run) is not None:
            stages = run.options.get("stages", 0)
            options = found.setdefault((point.model, stages), {})
            options.setdefault(point.number, (point, []))[1].append(run)
    measured, methods = [], {}
    for (model, stages), options in found.items():
        point, runs = _chosen(experiment, list(options.values()))
        title = registry.get(model).title.removeprefix("ST + ") + (f", C = {stages}" if stages else "")
        title = ORACLE if place.spec.dataset.options.get("reminded") else title
        seeds, ids = tuple(run.seed for run in runs), tuple(experiment.folder(run).id for run in runs)
        method = Method(title, ids, seeds, tuple(load_results(experiment.result_files(run).results) for run in runs))
        values = {m: mean_and_std(seed_values(method, m)) for m in METRICS}
        words = " ".join(f"{k}={v}" for k, v in point.options.items() if k != "stages")
        held = fmean(_validation(experiment, run) for run in runs)
        about = (turns, len(train), place.variant, model, title, words, len(options), seeds)
        measured.append(Measured(*about, held, values, ids))
        methods[model, stages] = (held, method)
    return measured, _differences(turns, len(train), methods)


def _chosen(experiment: Experiment, options: Sequence[tuple[Point, list[Run]]]) -> tuple[Point, list[Run]]:
    """Return the option with the highest mean validation recall, over the seeds that all options have."""
    common = set.intersection(*({run.seed for run in runs} for _, runs in options))

    def recall(option: tuple[Point, list[Run]]) -> float:
        return fmean(_validation(experiment, run) for run in option[1] if run.seed in common or not common)

    return max(options, key=recall)


def _validation(experiment: Experiment, run: Run) -> float:
    """Return the recall of a run on the validation part (mean of R@5 and R@8), or 0 without one."""
    return experiment.folder(run).record()["finished"].get("validation", {}).get("mean", 0.0)


def seed_values(method: Method, metric: str) -> list[float]:
    """Return the metric of each seed, averaged as the dataset asks."""
    about = method.evaluations[0]
    strata = strata_of(about.categories, about.averaging)
    return [fmean(session_values(e.ranks, metric)[m].mean() for m in strata) for e in method.evaluations]


def _differences(turns: int, sessions: int, methods: dict[tuple[str, int], tuple[float, Method]]) -> list[Gap]:
    """Compare the CM-NTM of the highest validation recall with each baseline, in every metric."""
    memories = {key: value for key, value in methods.items() if key[0] == "cm_ntm"}
    if not memories:
        return []
    _, a = max(memories.values(), key=lambda pair: pair[0])
    found, about = [], a.evaluations[0]
    strata = strata_of(about.categories, about.averaging)
    for key, (_, b) in methods.items():
        for metric in METRICS if key[0] in BASELINES else ():
            fixed = not registry.get(key[0]).trainable
            one, other = (session_values(m.ranks(about.session_ids), metric).mean(axis=0) for m in (a, b))
            gap = one - other
            over = difference(fmean(gap[m].mean() for m in strata), bootstrap(gap[:, None], strata)[:, 0])
            first, second = (dict(zip(m.seeds, seed_values(m, metric), strict=True)) for m in (a, b))
            found.append((metric, b.name, over, seed_test(first, second, (False, fixed))))
    corrected = holm([over.p for _, _, over, _ in found]) if found else []
    return [
        Gap(turns, sessions, metric, a.name, b, *over, p, *((test.n, test.p) if test else (0, 1.0)))
        for (metric, b, over, test), p in zip(found, corrected, strict=True)
    ]


def draw_memory_pays(study: MemoryPays, folder: Path) -> list[Path]:
    """Draw memory-pays (PNG and SVG) and write memory-pays.json; return the paths."""
    paths = [folder / f"memory-pays{suffix}" for suffix in (".png", ".svg")]
    turns = list(dict.fromkeys(m.turns for m in study.measured))
    labels = list(dict.fromkeys(m.label for m in study.measured))
    figure = new_figure(1.6 + 3.0 * len(turns), 3.9)
    axes = np.atleast_1d(figure.subplots(1, len(turns), sharey=True))
    for panel, count in zip(axes, turns, strict=True):
        for n, label in enumerate(labels):
            mine = [m for m in study.measured if m.turns == count and m.label == label]
            if label == ORACLE:
                for m in mine:
                    panel.axhline(m.values["mean"][0], color="#555555", lw=1, ls="--", label=label)
                continue
            x = [m.sessions for m in mine]
            y, spread = ([m.values["mean"][k] for m in mine] for k in (0, 1))
            look = {"marker": MARKERS[n % len(MARKERS)], "ms": 4, "lw": 1.2, "color": f"C{n}", "capsize": 2}
            panel.errorbar(x, y, spread, label=label, **look)
        panel.set_xscale("log")
        sizes = sorted({m.sessions for m in study.measured if m.turns == count and m.label != ORACLE})
        panel.set_xticks(sizes, [f"{size:,}" for size in sizes], fontsize=8)
        panel.minorticks_off()
        panel.set_title(f"up to {count} turns", fontsize=10)
        panel.set_xlabel("train sessions")
        panel.grid(alpha=0.3)
    axes[0].set_ylabel(f"{SHOWN['mean']}, %")
    handles = {name: h for panel in axes for h, name in zip(*panel.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside right center", fontsize=8)
    save_figure(figure, paths)
    write_json(folder / "memory-pays.json", study.as_dict(), allow_nan=True)
    return [*paths, folder / "memory-pays.json"]
