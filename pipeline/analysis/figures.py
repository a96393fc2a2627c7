"""The paper's figures from the existing runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from manifests.ablation_spec import load_ablation_spec
from manifests.commandline import command_line, repeated_options
from manifests.errors import IncompleteError
from manifests.figure_spec import FigureSpec, load_figure_spec
from manifests.table_spec import ResultsTable, RowSpec
from pipeline.analysis.ablation.timing import read_timing, timing_file
from pipeline.analysis.cells import seed_text
from pipeline.analysis.plots import Scatter, ScatterPoint, draw, scatter, scatter_point
from pipeline.analysis.protocol import read_runs
from pipeline.analysis.tables import RunFinder
from pipeline.analysis.tuning.sealed import read_spec
from pipeline.core.text_table import csv_text
from pipeline.core.workspace import Workspace
from pipeline.training.models import model_class, model_names


def build_figure(name: str, run: str, overrides: Sequence[str], data: Path, out: Path) -> tuple[FigureSpec, Scatter]:
    """Return figure ``name`` as data."""
    options = repeated_options(overrides, data, out)
    figure = load_figure_spec(name)
    ablation = load_ablation_spec(figure.ablation)
    spec = read_spec(run or figure.run, overrides)
    if run and run != figure.run:
        figure = figure.model_copy(update={"title": f"{figure.title} (run spec {spec.name} instead)"})
    points = ablation.points(model_names())
    rows = [
        RowSpec(model=p.model, label=p.label, key=str(p.number), options=dict(p.options), training=dict(p.training))
        for p in points
    ]
    table = ResultsTable(kind="results", title=figure.title, run=figure.run, ablation=figure.ablation, rows=tuple(rows))
    finder = RunFinder(spec, data, Workspace(out), table)
    timing = read_timing(timing_file(out, ablation.name))
    made, all_runs = [], []
    for point, row in zip(points, rows, strict=True):
        seeds = ablation.seeds if model_class(point.model).trainable else ablation.seeds[:1]
        runs = read_runs(point.label, finder(row, seeds))
        times: dict[str, float] = next((timing["runs"][r.run] for r in runs if r.run in timing.get("runs", {})), {})
        missing = [seed for seed in seeds if seed not in {r.seed for r in runs}]
        words = ["ablate", figure.ablation, "--only", str(point.number)]
        words += ["--spec", run] if run else []
        words += ["--seeds", seed_text(missing)] if missing and tuple(missing) != seeds else []
        command = command_line(*words, *options) if missing or not times else ""
        made.append(scatter_point(figure, point.label, point.options, runs, times, command))
        all_runs += runs
    drawn = scatter(figure, made, all_runs, timing)
    return figure, drawn.model_copy(update={"notes": (*drawn.notes, *dict.fromkeys(finder.stale))})


def paper_figure(
    name: str, form: str, run: str, overrides: Sequence[str], data: Path, out: Path, folder: Path | None
) -> str:
    """Return figure ``name`` as CSV or JSON, or (with ``files``) the drawn paths and the missing points."""
    spec, figure = build_figure(name, run, overrides, data, out)
    if form == "json":
        return figure.model_dump_json(indent=2) + "\n"
    if form == "csv":
        return csv_text(tuple(ScatterPoint.model_fields), (point.model_dump() for point in figure.points))
    words = ["ablate", spec.ablation, *(["--spec", run] if run else []), *repeated_options(overrides, data, out)]
    missing_parts = command_line(*words)
    if not any(point.whole for point in figure.points):
        raise IncompleteError(f"no point has both a recall and a time: run `{missing_parts}`")
    written = draw(figure, folder or out / "figures", f"figure-{Path(name).stem}")
    lines = [str(path) for path in written] + list(figure.notes)
    absent = [point.label for point in figure.points if not point.whole]
    fewer = [point.label for point in figure.points if point.whole and point.command]
    lines += [f"not drawn (missing: a run, a timing): {', '.join(absent)}"] if absent else []
    lines += [f"of fewer seeds than the ablation has: {', '.join(fewer)}"] if fewer else []
    lines += [f"to fill: {missing_parts}"] if absent or fewer else []
    return "\n".join(lines) + "\n"
