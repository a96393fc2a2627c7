"""The `compare` command."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.commands._shared import emit, option_data, option_json, option_out

SECTION = "results"


@click.command("compare", epilog="Example: fashion-ntm compare ewma cm_ntm --data DIR")
@click.argument("run_a", metavar="RUN_A")
@click.argument("run_b", metavar="RUN_B")
@click.option("--top", type=click.IntRange(0), default=10, help="Sessions shown at each end.")
@click.option(
    "--view",
    default="",
    show_default=False,
    help="A view of an ablation, such as turns4-last2. Default: all sessions, whole.",
)
@option_data
@option_out
@option_json
def command(run_a: str, run_b: str, top: int, view: str, data: Path, out: Path, as_json: bool) -> None:
    """Compare the rankings of RUN_A and RUN_B, with significance tests.

    Lists the test sessions that differ most. A run is named by its id or its first digits. To compare over several
    seeds, give comma-separated ids or the name of a memory model. `ls runs` lists the runs.
    """
    from pipeline.analysis.compare import compare_runs, to_text

    found = compare_runs(run_a, run_b, data, out, top, view)
    emit(found.as_dict(), to_text(found), as_json)
