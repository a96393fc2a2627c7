"""The paper's figures from the existing runs: as data, and drawn with matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev

from manifests.ablation_spec import load_ablation_spec
from manifests.commandline import command_line, repeated_options
from manifests.errors import IncompleteError
from manifests.figure_spec import FigureSpec, load_figure_spec
from manifests.schema import Frozen
from manifests.table_spec import ResultsTable, RowSpec
from pipeline.analysis.ablation.timing import read_timing, timing_file
from pipeline.analysis.cells import seed_text
from pipeline.analysis.drawing import SUFFIXES, new_figure, save_figure
from pipeline.analysis.protocol import protocol_notes, read_runs
from pipeline.analysis.tables import RunFinder
from pipeline.analysis.tuning.trials import read_spec
from pipeline.core.text_table import csv_text
from pipeline.core.workspace import Workspace
from pipeline.training.models import model_class, model_names

# A ramp from light to dark, because C is ordered; distinguishable in gray.
COLORS = ("#9ecae1", "#56a0d3", "#2b7bba", "#135293", "#08244f", "#000000")


class ScatterPoint(Frozen):
    """One configuration. ``command`` measures its missing values; incomplete points are not drawn."""

    label: str
    series: int | float | str
    size: int | float | str
    recall: float | None = None  # mean over the seeds, in percent
    std: float | None = None
    milliseconds: float | None = None  # median, for one session
    low: float | None = None  # quartiles
    high: float | None = None
    seeds: tuple[int, ...] = ()
    runs: tuple[str, ...] = ()
    store: str = ""
    command: str = ""

    @property
    def whole(self) -> bool:
        return self.recall is not None and self.milliseconds is not None


class Scatter(Frozen):
    title: str
    x: str
    y: str
    series_label: str
    size_label: str
    points: tuple[ScatterPoint, ...]
    notes: tuple[str, ...] = ()


def build_figure(figure: FigureSpec, spec: str, overrides: Sequence[str], data: Path, out: Path) -> Scatter:
    """Return a figure as data: a point per configuration of its ablation, from its runs and measured time."""
    ablation, run = load_ablation_spec(figure.ablation), read_spec(spec or figure.run, overrides)
    title = figure.title + (f" (run spec {run.name} instead)" if spec and spec != figure.run else "")
    points = ablation.points(model_names())
    rows = [
        RowSpec(model=p.model, label=p.label, key=str(p.number), options=dict(p.options), training=dict(p.training))
        for p in points
    ]
    table = ResultsTable(kind="results", title=title, run=figure.run, ablation=figure.ablation, rows=tuple(rows))
    finder = RunFinder(run, data, Workspace(out), table)
    timing = read_timing(timing_file(out, ablation.name))
    timed: dict[str, dict[str, float]] = timing.get("runs", {})
    made, all_runs = [], []
    for point, row in zip(points, rows, strict=True):
        seeds = ablation.seeds if model_class(point.model).trainable else ablation.seeds[:1]
        runs = read_runs(point.label, finder(row, seeds))
        all_runs += runs
        times = next((timed[r.run] for r in runs if r.run in timed), {})
        values = [v for r in runs if (v := r.value(figure.subset, figure.category, figure.metric)) is not None]
        missing = [seed for seed in seeds if seed not in {r.seed for r in runs}]
        words = ["--only", str(point.number), *(["--spec", spec] if spec else [])]
        words += ["--seeds", seed_text(missing)] if missing and tuple(missing) != seeds else []
        command = command_line("ablate", figure.ablation, *words, *repeated_options(overrides, data, out))
        made.append(
            ScatterPoint(
                label=point.label,
                series=point.options.get(figure.series, "?"),
                size=point.options.get(figure.size, "?"),
                recall=fmean(values) if values else None,
                std=stdev(values) if len(values) > 1 else None,
                **times,
                seeds=tuple(r.seed for r in runs if r.seed is not None),
                runs=tuple(r.run for r in runs),
                store=runs[0].store if runs else "",
                command=command if missing or not times else "",
            )
        )
    notes = list(protocol_notes(all_runs))
    if timed:
        notes.append(
            f"Time: median of {timing['rounds']} forward passes of one session of {timing['turns']} turns, f_qry to "
            f"f'_qry, quartiles as bars; {timing['device']}, {timing['threads']} threads, {timing['machine']}."
        )
    return Scatter(
        title=title,
        x="inference time of one session (ms)",
        y=f"{'mean of R@5 and R@8' if figure.metric == 'mean' else figure.metric} (%)",
        series_label=figure.series_label,
        size_label=figure.size_label,
        points=tuple(made),
        notes=(*notes, *figure.notes, *dict.fromkeys(finder.stale)),
    )


def paper_figure(name: str, form: str, spec: str, overrides: Sequence[str], data: Path, out: Path, folder: Path) -> str:
    """Return a figure as CSV or JSON, or (with ``files``) the paths drawn in ``folder`` and the missing points."""
    asked = load_figure_spec(name)
    figure = build_figure(asked, spec, overrides, data, out)
    if form == "json":
        return figure.model_dump_json(indent=2) + "\n"
    if form == "csv":
        return csv_text(tuple(ScatterPoint.model_fields), (point.model_dump() for point in figure.points))
    words = [*(["--spec", spec] if spec else []), *repeated_options(overrides, data, out)]
    missing_parts = command_line("ablate", asked.ablation, *words)
    if not any(point.whole for point in figure.points):
        raise IncompleteError(f"no point has both a recall and a time: run `{missing_parts}`")
    lines = [str(path) for path in draw(figure, folder, f"figure-{Path(name).stem}")] + list(figure.notes)
    absent = [point.label for point in figure.points if not point.whole]
    fewer = [point.label for point in figure.points if point.whole and point.command]
    lines += [f"not drawn (missing: a run, a timing): {', '.join(absent)}"] if absent else []
    lines += [f"of fewer seeds than the ablation has: {', '.join(fewer)}"] if fewer else []
    lines += [f"to fill: {missing_parts}"] if absent or fewer else []
    return "\n".join(lines) + "\n"


def draw(figure: Scatter, folder: Path, name: str) -> list[Path]:
    """Draw the complete points, one at least, as PNG, SVG and PDF; return the files. Raises DrawingError."""
    drawing = new_figure(7.2, 4.6)
    from matplotlib.lines import Line2D

    whole = [(p, ms, r) for p in figure.points if (ms := p.milliseconds) is not None and (r := p.recall) is not None]
    series = sorted({point.series for point, _, _ in whole}, key=_order)
    sizes = sorted({point.size for point, _, _ in whole}, key=_order)
    color = {value: _ramp(n, len(series)) for n, value in enumerate(series)}
    area = {value: 28 + 42 * n for n, value in enumerate(sizes)}
    axes = drawing.add_subplot()
    for value in series:
        line = sorted((w for w in whole if w[0].series == value), key=lambda w: _order(w[0].size))
        axes.plot([ms for _, ms, _ in line], [recall for _, _, recall in line], color=color[value], lw=0.8, alpha=0.5)
    for p, ms, recall in whole:
        spread, own = [[ms - (p.low or ms)], [(p.high or ms) - ms]], color[p.series]
        axes.errorbar(ms, recall, xerr=spread, yerr=p.std, color=own, lw=0.8, alpha=0.6)
        axes.scatter(ms, recall, s=area[p.size], color=own, edgecolors="white", linewidths=0.7, zorder=3)
    axes.set_xscale("log")
    low, high = min(ms for _, ms, _ in whole), max(ms for _, ms, _ in whole)
    ticks = [t for e in range(-4, 6) for m in (1, 2, 5) if low / 1.6 <= (t := m * 10.0**e) <= high * 1.6]
    axes.set_xticks(ticks, [f"{t:g}" for t in ticks])
    axes.minorticks_off()
    axes.set(xlabel=figure.x, ylabel=figure.y)
    axes.set_title(figure.title, fontsize=10)
    axes.grid(True, color="0.9", lw=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)

    def dot(color: str, area: float) -> Line2D:
        return Line2D([], [], ls="", marker="o", color=color, markersize=area**0.5, markeredgecolor="white")

    blank = Line2D([], [], ls="")
    handles = [blank, *(dot(color[v], 60) for v in series), blank, *(dot("0.45", area[v]) for v in sizes)]
    labels = [f"{figure.series_label} =", *map(str, series), f"{figure.size_label} =", *map(str, sizes)]
    axes.legend(handles, labels, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=9)
    paths = [folder / f"{name}{suffix}" for suffix in SUFFIXES]
    save_figure(drawing, paths)
    return paths


def _ramp(number: int, count: int) -> str:
    return COLORS[round(number * (len(COLORS) - 2) / max(1, count - 1))] if count <= 5 else COLORS[number % 6]


def _order(value: int | float | str) -> tuple[int, float, str]:
    return (0, float(value), "") if isinstance(value, int | float) else (1, 0.0, value)
