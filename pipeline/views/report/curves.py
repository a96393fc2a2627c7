"""Learning curves, memory diagnostics and Figure 8, from the files of the run folders."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from manifests.schema import RunSpec
from pipeline.analysis.ablation.timing import read_timing
from pipeline.jobs.experiment import Experiment
from pipeline.training.runs import RunFolder, list_runs
from pipeline.views.report.charts import lines, scatter
from pipeline.views.retrieval.trained import Trained

QUANTITIES = {
    "row_spread": "row spread of the memories",
    "read_entropy": "entropy of the read weights, nats",
    "write_entropy": "entropy of the write weights, nats",
    "gradient": "gradient norm of the addressing",
}


@dataclass(frozen=True)
class Figure:
    """A chart, or ``why_not``: the missing data and the command that produces it."""

    title: str
    svg: str = ""
    note: str = ""
    why_not: str = ""


def learning_curves(models: Sequence[Trained]) -> list[Figure]:
    """Return charts of loss and validation recall by epoch, of every model trained by gradient."""
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


def diagnostics(models: Sequence[Trained], spec: RunSpec) -> list[Figure]:
    """Return one chart per memory diagnostic that training logged, with one line per model and stage."""
    series: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for trained in models:
        for record in trained.folder.diagnoses():
            for name, value in _by_stage(record):
                quantity, _, stage = name.rpartition(" ")
                line = f"{trained.label}, stage {stage}"
                series.setdefault(quantity, {}).setdefault(line, []).append((record["epoch"], value))
    if not series:
        why = f"no run has logged any: `{spec.command('train', '--model', 'cm_ntm', '--diagnostics', '--force')}`"
        return [Figure("Memory diagnostics", why_not=why)]
    return [
        Figure(QUANTITIES[name], lines(found, "epoch", QUANTITIES[name], _ends(name, found)), _ends("Last", found))
        for name, found in series.items()
    ]


def memory_figure(experiment: Experiment) -> Figure:
    """Plot recall against inference time of the CM-NTM runs on these features that an ablation timed (Figure 8)."""
    title = "Recall against inference time (Figure 8)"
    found: dict[str, list[tuple[float, float, str]]] = {}
    times: dict[str, float] = {}  # run id -> median milliseconds per session
    for path in sorted(experiment.workspace.out.glob("ablations/*/timing.json")):
        times |= {run: values["milliseconds"] for run, values in read_timing(path).get("runs", {}).items()}
    for folder in list_runs(experiment.workspace.runs):
        if folder.id in times and (point := _point(folder, experiment, times[folder.id])):
            found.setdefault(point[0], []).append(point[1:])
    if sum(map(len, found.values())) < 2:
        why = "fewer than two evaluated CM-NTM runs on these features are timed"
        return Figure(title, why_not=f"{why}: `{experiment.spec.command('ablate figure8 --spec')}`")
    chart = scatter(dict(sorted(found.items())), "ms per session", "mean of R@5 and R@8, %", title)
    return Figure(title, chart, "One point per run; colors are the number of memories C.")


def _point(folder: RunFolder, experiment: Experiment, time: float) -> tuple[str, float, float, str] | None:
    """Return (C, milliseconds, recall, label) of an evaluated CM-NTM run on these features; None for any other."""
    if folder.model not in ("cm_ntm", "v_ntm") or folder.state != "finished":
        return None
    identity = folder.record()["identity"]
    run = experiment.run_of(identity)
    if run is None or (summary := experiment.evaluation(run)) is None:
        return None
    options = identity["model"]["options"]
    recall = summary["metrics"]["all"]["overall"]["mean"]
    label = f"{options['slots']} slots of {options['width'] or 'D'}, seed {identity['seed']}, run {folder.id}"
    return f"C = {options['stages']}", time, float(recall), label


def _by_stage(record: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """Yield ("<quantity> <stage>", value) of a record: row spread read by the last turn, entropies over all turns."""
    for number, values in enumerate(record.get("row_spread", ()), start=1):
        yield f"row_spread {number}", values[-2]
    for name in ("read_entropy", "write_entropy"):
        for number, values in enumerate(record.get(name, ()), start=1):
            yield f"{name} {number}", sum(values) / len(values)
    for number, value in enumerate(record.get("gradient", {}).get("addressing", ()), start=1):
        yield f"gradient {number}", value


def _ends(word: str, series: dict[str, Any]) -> str:
    return f"{word}: " + ", ".join(f"{name} {points[-1][1]:.4g}" for name, points in series.items()) + "."
