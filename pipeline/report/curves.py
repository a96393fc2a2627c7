"""Learning curves, memory diagnostics and Figure 8, from what the run folders already hold."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.report.charts import lines, scatter
from pipeline.retrieval.trained import Trained
from pipeline.stage2 import StageTwo
from pipeline.training.runs import RunFolder, list_runs

OWN = {"epoch", "loss", "seconds", "validation", "best", "chosen", "learning_rate"}  # of every epoch's record
TIME_KEYS = ("ms_per_session", "inference_ms", "milliseconds_per_session")


@dataclass(frozen=True)
class Figure:
    """A chart, or ``why_not``: what is missing and the command that makes it."""

    title: str
    svg: str = ""
    note: str = ""
    why_not: str = ""


def learning_curves(models: Sequence[Trained]) -> list[Figure]:
    """Loss and validation recall by epoch of every model that was trained by gradient."""
    loss, found = {}, {}
    for trained in models:
        rows = [row for row in trained.folder.metrics() if row.get("epoch")]
        if points := [(row["epoch"], row["loss"]) for row in rows if "loss" in row]:
            loss[trained.label] = points
        if points := [(r["epoch"], r["validation"]["mean"]) for r in rows if r.get("validation")]:
            found[trained.label] = points
    if not loss:
        why = "no model that is trained by gradient has finished: `train` one, e.g. cm_ntm"
        return [Figure("Training loss", why_not=why)]
    figures = [Figure("Training loss", lines(loss, "epoch", "loss", _ends("Training loss", loss)), _ends("Last", loss))]
    if found:
        chart = lines(found, "epoch", "mean of R@5 and R@8, %", _ends("Validation recall", found))
        note = _ends("Last", found) + " Ranked among the validation sessions' own targets: not comparable with a table."
        figures.append(Figure("Validation", chart, note))
    return figures


def diagnostics(models: Sequence[Trained], asked: str) -> list[Figure]:
    """A chart of each diagnostic that training logged: row spread, entropy of the weights, gradient norms."""
    series: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for trained in models:
        for row in trained.folder.metrics():
            for name, value in _numbers({k: v for k, v in row.items() if k not in OWN}):
                series.setdefault(name, {}).setdefault(trained.label, []).append((row["epoch"], value))
    if not series:
        why = f"no run has logged any: `python cli.py train {asked} --model cm_ntm --diagnostics --force`"
        return [Figure("Memory diagnostics", why_not=why)]
    return [
        Figure(name, lines(found, "epoch", name, _ends(name, found)), _ends("Last", found))
        for name, found in series.items()
    ]


def memory_figure(stage: StageTwo) -> Figure:
    """Recall against inference time of every evaluated CM-NTM on these features (paper Figure 8)."""
    title = "Recall against inference time (Figure 8)"
    found: dict[str, list[tuple[float, float, str]]] = {}
    for folder in list_runs(stage.workspace.runs):
        point = _point(folder, stage.store.fingerprint)
        if point:
            found.setdefault(point[0], []).append(point[1:])
    if sum(map(len, found.values())) < 2:
        why = "fewer than two evaluated CM-NTM runs state their inference time: `python cli.py ablate figure8`"
        return Figure(title, why_not=why)
    chart = scatter(dict(sorted(found.items())), "ms a session", "mean of R@5 and R@8, %", title)
    return Figure(title, chart, "One point a run; colours are the number of memories C.")


def _point(folder: RunFolder, fingerprint: str) -> tuple[str, float, float, str] | None:
    """(C, milliseconds, recall, label) of an evaluated CM-NTM run on these features; None for any other."""
    from pipeline.results.files import load_summary

    if folder.model not in ("cm_ntm", "v_ntm") or folder.state != "finished" or not folder.summary_file.is_file():
        return None
    identity, summary = folder.record()["identity"], load_summary(folder.summary_file)
    timing = {**summary, **summary.get("timing", {}), **summary.get("inference", {})}
    time = next((timing[key] for key in TIME_KEYS if isinstance(timing.get(key), int | float)), None)
    if identity["store"] != fingerprint or time is None:
        return None
    options = identity["model"]["options"]
    recall = summary["metrics"]["all"]["overall"]["mean"]
    label = f"{options['slots']} slots of {options['width'] or 'D'}, seed {identity['seed']}, run {folder.id}"
    return f"C = {options['stages']}", float(time), float(recall), label


def _numbers(row: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Numeric leaves of a nested record as (dotted name, value); a list gives its mean."""
    for name, value in row.items():
        if isinstance(value, dict):
            yield from _numbers(value, f"{prefix}{name}.")
        elif isinstance(value, list) and value and all(isinstance(v, int | float) for v in value):
            yield f"{prefix}{name}", sum(value) / len(value)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{prefix}{name}", float(value)


def _ends(word: str, series: dict[str, Any]) -> str:
    return f"{word}: " + ", ".join(f"{name} {points[-1][1]:.4g}" for name, points in series.items()) + "."
