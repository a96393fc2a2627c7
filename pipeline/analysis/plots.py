"""Figures of measured points: as data, and drawn with matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from manifests.figure_spec import FigureSpec
from manifests.schema import Frozen
from pipeline.analysis.drawing import SUFFIXES, new_figure, save_figure
from pipeline.analysis.protocol import RunSummary, protocol_notes

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
    """Data of a scatter figure."""

    title: str
    x: str
    y: str
    series_label: str
    size_label: str
    points: tuple[ScatterPoint, ...]
    notes: tuple[str, ...] = ()


def scatter_point(
    spec: FigureSpec,
    label: str,
    options: Mapping[str, Any],
    runs: Sequence[RunSummary],
    timing: Mapping[str, float],
    command: str = "",
) -> ScatterPoint:
    """Return a point from its runs (one per seed) and its measured time; missing values stay empty."""
    values = [v for run in runs if (v := run.value(spec.subset, spec.category, spec.metric)) is not None]
    return ScatterPoint(
        label=label,
        series=options.get(spec.series, "?"),
        size=options.get(spec.size, "?"),
        recall=fmean(values) if values else None,
        std=stdev(values) if len(values) > 1 else None,
        milliseconds=timing.get("milliseconds"),
        low=timing.get("low"),
        high=timing.get("high"),
        seeds=tuple(run.seed for run in runs if run.seed is not None),
        runs=tuple(run.run for run in runs),
        store=runs[0].store if runs else "",
        command=command,
    )


def scatter(
    spec: FigureSpec, points: Sequence[ScatterPoint], runs: Sequence[RunSummary], timing: Mapping[str, Any]
) -> Scatter:
    """Return the figure's data. ``runs`` and ``timing`` (``ablation.timing``) provide the notes on the measurement."""
    metric = "mean of R@5 and R@8" if spec.metric == "mean" else spec.metric
    notes = list(protocol_notes(runs))
    if timing.get("runs"):
        notes.append(
            f"Time: median of {timing['rounds']} forward passes of one session of {timing['turns']} turns, f_qry to "
            f"f'_qry, quartiles as bars; {timing['device']}, {timing['threads']} threads, {timing['machine']}."
        )
    return Scatter(
        title=spec.title,
        x="inference time of one session (ms)",
        y=f"{metric} (%)",
        series_label=spec.series_label,
        size_label=spec.size_label,
        points=tuple(points),
        notes=(*notes, *spec.notes),
    )


def draw(figure: Scatter, folder: Path, name: str) -> list[Path]:
    """Draw the complete points, of which there is one at least, as PNG, SVG and PDF and return the files.

    Raises DrawingError.
    """
    drawing = new_figure(7.2, 4.6)
    from matplotlib.lines import Line2D

    whole = [
        (p, p.milliseconds, p.recall) for p in figure.points if p.milliseconds is not None and p.recall is not None
    ]
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
    axes.set_xlabel(figure.x)
    axes.set_ylabel(figure.y)
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
