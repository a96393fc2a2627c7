"""The `figure` command."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from pipeline.commands._shared import FILE, PATH, emit, log, option_data, option_json, option_out, option_set, show

SECTION = "results"
DIAGNOSTICS, LEAKAGE, PAYS = "diagnostics", "leakage", "memory-pays"


@click.command(
    "figure",
    epilog="Example: fashion-ntm figure 8 --data DIR, or fashion-ntm figure diagnostics --run 1f3a --file rows.png",
)
@click.argument("name", metavar="N|diagnostics|leakage|memory-pays")
@click.option(
    "--spec",
    default="",
    show_default=False,
    help="For N: run spec whose runs are shown. Default: the one that the figure names.",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["files", "csv", "json"]),
    default="files",
    help="For N: draw PNG, SVG and PDF files, or print the data.",
)
@click.option("--to", type=PATH, help="For N: folder for the files. Default: OUT/figures.")
@click.option("--run", "runs", multiple=True, help="For diagnostics: id or folder of a run. Repeatable.")
@click.option(
    "--file",
    "files",
    type=FILE,
    multiple=True,
    help="For diagnostics: file to draw into (.png, .svg or .pdf); repeatable. Default: diagnostics.png and .svg in "
    "the folder of the first run.",
)
@option_set
@option_data
@option_out
@option_json
def command(
    name: str,
    spec: str,
    form: str,
    to: Path | None,
    runs: tuple[str, ...],
    files: tuple[Path, ...],
    overrides: tuple[str, ...],
    data: Path,
    out: Path,
    as_json: bool,
) -> None:
    """Plot figure N of the paper from measured runs, or print its data.

    Points without a run are listed. `figure leakage` plots recall on all, leaked and clean sessions against train
    recall, from `ablate memorisation`. `figure memory-pays` plots recall against train sessions and turns, from `ablate
    memory-pays`. `figure diagnostics` plots how the memory rows of runs that were trained with --diagnostics diverge.
    --json prints the data of figure N, as --format json does.
    """
    if name == DIAGNOSTICS:
        if not runs:
            raise click.UsageError("figure diagnostics needs a run: --run ID; `fashion-ntm ls runs` lists them")
        if as_json or form != "files":
            raise click.UsageError("figure diagnostics draws files; diagnostics.jsonl in a run's folder is the data")
        from pipeline.analysis.diagnostics_figure import diagnostics_figure
        from pipeline.core.workspace import Workspace

        show(diagnostics_figure(runs, Workspace(out).runs, files))
        return
    if name in (LEAKAGE, PAYS) and not files:
        from pipeline.analysis.ablation.run import open_ablation
        from pipeline.analysis.memorisation import draw_memorisation, memorisation
        from pipeline.analysis.memory_pays import draw_memory_pays, memory_pays

        studies: dict[str, tuple[str, Any, Any]] = {
            LEAKAGE: ("memorisation", memorisation, draw_memorisation),
            PAYS: ("memory-pays", memory_pays, draw_memory_pays),
        }
        ablation, collect, draw = studies[name]
        study = collect(open_ablation(ablation, spec, overrides, data, out, "cpu"))
        if not as_json and form == "files":
            for path in draw(study, to or out / "figures"):
                log(f"wrote {path}")
        emit(study.as_dict(), study.text(), as_json or form == "json")
        return
    if files:
        raise click.UsageError("--file belongs to `figure diagnostics`; figure N takes a folder: --to DIR")
    from pipeline.analysis.figures import paper_figure

    form = "json" if as_json else form
    show(paper_figure(name, form, spec, overrides, data, out, to), nl=False)
