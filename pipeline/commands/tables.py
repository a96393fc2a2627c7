"""Commands that print or draw results: table, figure, report, turns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.commands._options import FILE, PATH, choice, option_device, option_inputs, option_json, parse_numbers
from pipeline.commands._shared import Job, Printed, log, prints, sessions_command, show, stage2_command

if TYPE_CHECKING:
    from pipeline.jobs.experiment import Experiment

SECTION = "results"
DIAGNOSTICS, LEAKAGE, PAYS = "diagnostics", "leakage", "memory-pays"


@click.command("table", epilog="Example: fashion-ntm table 1 --data DIR --format latex")
@click.argument("name", metavar="SPEC")
@click.option("--spec", default="", help="Run spec that fills the table. Default: the one that the table names.")
@choice("--format", "form", of=("md", "latex", "csv", "json"))
@click.option(
    "--seeds", callback=parse_numbers, help="0..4 or 0,2,5. Default: all that are trained on the current data."
)
@click.option(
    "--ranked", multiple=True, metavar="NAME", help="Add a row for a ranked list scored by evaluate; repeatable."
)
@click.option("--run", "runs", multiple=True, help="For leaderboard: add a row for a run by id or folder; repeatable.")
@click.option("--to", type=PATH, help="For leaderboard: folder for leaderboard.md and .json.")
@option_inputs
@option_json
def table(form: str, runs: tuple[str, ...], to: Path | None, as_json: bool, **asked: Any) -> None:
    """Print a table: measured values, the paper's, chance, and commands that fill empty cells.

    SPEC is a table of the paper (1 to 5), `leaderboard`, a run spec (one row per model) or an ablation (one row per
    point). --json is short for --format json.
    """
    from manifests.table_spec import Leaderboard, load_table_spec
    from pipeline.analysis.leaderboard import build_leaderboard, leaderboard_text, write_leaderboard
    from pipeline.analysis.own_tables import kind_of_table
    from pipeline.analysis.render import render
    from pipeline.analysis.tables import TableRequest, build_table

    form = "json" if as_json else form
    request = TableRequest(**{key: value for key, value in asked.items() if value is not None})
    table = load_table_spec(request.name) if kind_of_table(request.name) == "table" else None
    if isinstance(table, Leaderboard):
        found = build_leaderboard(table, request, runs)
        for path in write_leaderboard(table, found, to) if to else ():
            log(f"wrote {path}")
        show(leaderboard_text(table, found, form), nl=False)
        return
    if runs or to:
        raise click.UsageError("--run and --to belong to `table leaderboard`")
    show(render(build_table(request), form), nl=False)


@click.command(
    "figure",
    epilog="Example: fashion-ntm figure 8 --data DIR, or fashion-ntm figure diagnostics --run 1f3a --file rows.png",
)
@click.argument("name", metavar="N|diagnostics|leakage|memory-pays")
@click.option(
    "--spec", default="", help="For N: run spec whose runs are shown. Default: the one that the figure names."
)
@choice("--format", "form", of=("files", "csv", "json"), help="For N: draw PNG, SVG and PDF files, or print the data.")
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
@option_inputs
@option_json
def figure(name: str, form: str, runs: tuple[str, ...], files: tuple[Path, ...], as_json: bool, **asked: Any) -> None:
    """Plot figure N of the paper from measured runs, or print its data.

    Points without a run are listed. `figure leakage` plots recall on all, leaked and clean sessions against train
    recall, from `ablate memorisation`. `figure memory-pays` plots recall against train sessions and turns, from `ablate
    memory-pays`. `figure diagnostics` plots how the memory rows of runs that were trained with --diagnostics diverge.
    --json prints the data of figure N, as --format json does.
    """
    form = "json" if as_json else form
    if name == DIAGNOSTICS:
        if not runs:
            raise click.UsageError("figure diagnostics needs a run: --run ID; `fashion-ntm ls runs` lists them")
        if form != "files":
            raise click.UsageError("figure diagnostics draws files; diagnostics.jsonl in a run's folder is the data")
        from pipeline.analysis.diagnostics_figure import diagnostics_figure

        show(diagnostics_figure(runs, asked["out"] / "runs", files))
        return
    if files:
        raise click.UsageError("--file belongs to `figure diagnostics`; figure N takes a folder: --to DIR")
    folder = asked.pop("to") or asked["out"] / "figures"
    if name in (LEAKAGE, PAYS):
        from pipeline.analysis.ablation.run import open_ablation
        from pipeline.analysis.memorisation import draw_memorisation, memorisation
        from pipeline.analysis.memory_pays import draw_memory_pays, memory_pays

        studies: dict[str, tuple[str, Any, Any]] = {
            LEAKAGE: ("memorisation", memorisation, draw_memorisation),
            PAYS: ("memory-pays", memory_pays, draw_memory_pays),
        }
        ablation, collect, draw = studies[name]
        study = collect(open_ablation(ablation, **asked, device="cpu"))
        if form == "files":
            for path in draw(study, folder):
                log(f"wrote {path}")
        show(json.dumps(study.as_dict(), indent=2, default=str) if form == "json" else study.text())
        return
    from pipeline.analysis.figures import paper_figure

    show(paper_figure(name, form, folder=folder, **asked), nl=False)


@click.command("report", epilog="Example: fashion-ntm report demo --data out/demo --out out/demo --file report.html")
@sessions_command
@click.option("--file", type=FILE, default=Path("report.html"), help="The file to write.")
@click.option("--model", help="Memory model that is shown session by session. Default: the spec's last one.")
@click.option("--against", metavar="MODEL", help="Model that it is compared with. Default: the strongest other one.")
@click.option("--seeds", callback=parse_numbers, help="0..4 or 0,2,5. Default: the spec's seeds.")
@click.option("--sessions", type=click.IntRange(0), default=150, help="Sessions shown one by one.")
@click.option("--top", "k", type=click.IntRange(1, 50), default=5, help="Results per turn.")
@click.option(
    "--max-mb",
    "megabytes",
    type=click.FloatRange(0.2),
    default=20.0,
    metavar="MB",
    help="Largest size of the file; pictures are left out first.",
)
@option_device
@prints
def report(job: Job, file: Path, **asked: Any) -> Printed:
    """Write SPEC's results to one self-contained HTML file.

    It has tables, training curves, retention, turn order and single sessions.
    """
    from pipeline.views.report.build import Options, gather
    from pipeline.views.report.page import write_report

    done = write_report(file, gather(job.experiment, job.data, Options(**asked)))
    log(f"{done['bytes'] / 1e6:.1f} MB, {done['sessions']} sessions, {done['pictures']} pictures")
    return done, str(done["path"])


@click.command("turns", epilog="Example: fashion-ntm turns chatir --data DIR --file turns.png")
@stage2_command
@click.option("-k", type=click.IntRange(1), default=10, help="Cutoff K of recall and hits.")
@click.option("--file", "files", type=FILE, multiple=True, help="Figure (.png, .svg, .pdf).")
@prints
def turns(experiment: Experiment, k: int, files: tuple[Path, ...], **asked: Any) -> Printed:
    """Rank the final target after every turn with the trained runs of SPEC.

    Prints recall, hits so far and the best rank so far, by turn.
    """
    from pipeline.analysis.turn_curves import draw_turn_curves, turn_curves

    found = turn_curves(experiment, **asked, k=k)
    if files:
        draw_turn_curves(found, files, k)
        for path in files:
            log(f"wrote {path}")
    return found.as_dict(), found.text(k)
