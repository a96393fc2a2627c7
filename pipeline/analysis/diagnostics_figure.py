"""Figure of the training diagnostics of runs: when the rows of a memory become unequal, and the effects on addressing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, TypeAlias

from manifests.errors import IncompleteError
from pipeline.analysis.drawing import check_suffixes, new_figure, save_figure
from pipeline.jobs.managed_runs import run_named
from pipeline.training.runs import RunFolder

BROKEN = 0.01  # minimum row spread of a broken symmetry: rows differ by 1% of their length
SMALLEST = 1e-12  # lower bound, because a log axis has no zero


Records: TypeAlias = Sequence[dict[str, Any]]  # one per epoch: {"epoch": int, **``diagnose(...)``}


def spread_by_epoch(records: Records) -> list[list[float]]:
    """Return the row spread of each memory when the last turn reads it (after the turn before), [C][epochs]."""
    stages = len(records[0]["row_spread"])
    return [[r["row_spread"][stage][-2] for r in records] for stage in range(stages)]


def broken_at(records: Records) -> list[int | None]:
    """Return the first epoch per stage with a row spread of at least ``BROKEN``; None if there is none."""
    return [
        next((r["epoch"] for r, value in zip(records, values, strict=True) if value >= BROKEN), None)
        for values in spread_by_epoch(records)
    ]


def diagnostics_figure(given: Sequence[str], runs: Path, files: Sequence[Path]) -> str:
    """Draw the diagnostics of these runs side by side to ``files`` (default: in the first run's folder).

    Returns one line per run and file. Raises IncompleteError for a run trained without diagnostics.
    """
    folders = [run_named(name, runs) for name in given]
    paths = list(files) or [folders[0].path / f"diagnostics{suffix}" for suffix in (".png", ".svg")]
    check_suffixes(paths)
    diagnosed, lines = [], []
    for folder in folders:
        if not (records := folder.diagnoses()):
            again = "--diagnostics --force" if folder.state == "finished" else "--diagnostics"
            raise IncompleteError(f"run {folder.id} ({folder.model}) has no diagnostics: train it with {again}")
        diagnosed.append((_title(folder), records))
        stages = [f"stage {n}: {'not yet' if e is None else f'epoch {e}'}" for n, e in enumerate(broken_at(records), 1)]
        lines.append(f"{folder.model} {folder.id}: the symmetry between rows is broken from {', '.join(stages)}")
    draw_diagnostics(diagnosed, paths)
    return "\n".join([*lines, *(f"written: {path}" for path in paths)])


def draw_diagnostics(runs: Sequence[tuple[str, Records]], paths: Sequence[Path]) -> None:
    """Draw one column per run (title, records), and one line per stage: row spread, entropy of the weights, gradient of
    the addressing. Plots of a row share their axes. Raises DrawingError if matplotlib is missing.
    """
    height = 7.6 + 0.1 * max(len(records[0]["row_spread"]) for _, records in runs)
    figure = new_figure(1.2 + 3.6 * len(runs), height)
    axes = figure.subplots(3, len(runs), sharey="row", sharex="col", squeeze=False)
    for column, run in enumerate(runs):
        _column(list(axes[:, column]), *run)
        axes[-1, column].set_xlabel("epoch")
    axes[0, 0].set_ylabel("row spread of the memory\nthat the last turn reads")
    axes[1, 0].set_ylabel("entropy of the weights (nats),\nmean over turns")
    axes[2, 0].set_ylabel("gradient norm of the\naddressing parameters")
    save_figure(figure, paths)


def _column(axes: Sequence[Any], title: str, records: Records) -> None:
    from matplotlib import colormaps

    epochs = [r["epoch"] for r in records]
    spreads, broken = spread_by_epoch(records), broken_at(records)
    style = {"lw": 1.4, "marker": "o" if len(epochs) < 25 else "", "ms": 3}
    for stage, values in enumerate(spreads):
        # from light to dark along the cascade; distinguishable in gray
        color = tuple(colormaps["viridis"](0.85 * (1 - stage / max(1, len(spreads) - 1))))
        when = "rows stay equal" if broken[stage] is None else f"from epoch {broken[stage]}"
        shown = [max(v, SMALLEST) for v in values]
        axes[0].plot(epochs, shown, color=color, label=f"stage {stage + 1}: {when}", **style)
        for head, dashes in (("read_entropy", "-"), ("write_entropy", "--")):
            axes[1].plot(epochs, [fmean(r[head][stage]) for r in records], color=color, ls=dashes, **style)
        gradient = [max(r["gradient"]["addressing"][stage], SMALLEST) for r in records]
        axes[2].plot(epochs, gradient, color=color, **style)
    axes[0].axhline(BROKEN, color="0.5", lw=0.8, ls=":")
    axes[0].set(yscale="log", title=title)
    place = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.2), "ncols": 2}  # 16 stages leave no free corner
    look = {"title": f"row spread above {BROKEN:g}", "frameon": False, "fontsize": 8, "title_fontsize": 8}
    axes[2].legend(*axes[0].get_legend_handles_labels(), **place, **look)
    axes[1].axhline(math.log(records[0]["slots"]), color="0.5", lw=0.8, ls=":")
    for dashes, name in (("-", "read"), ("--", "write")):
        axes[1].plot([], [], color="0.3", ls=dashes, lw=1.4, label=name)
    axes[1].plot([], [], color="0.5", ls=":", lw=0.8, label=f"uniform, ln {records[0]['slots']}")
    axes[1].legend(frameon=False, fontsize=8)
    axes[1].set_ylim(0, None)
    axes[2].set_yscale("log")
    for axis in axes:
        axis.grid(True, color="0.92", lw=0.6)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
        axis.xaxis.get_major_locator().set_params(integer=True)


def _title(folder: RunFolder) -> str:
    """Return model, initialization and seed, as far as run.json has them."""
    record = folder.record() if folder.run_file.is_file() else {}
    identity = record.get("identity", {})
    known = {"init": identity.get("model", {}).get("options", {}).get("init"), "seed": identity.get("seed")}
    return ", ".join([folder.model, *(f"{key} {value}" for key, value in known.items() if value is not None)])
