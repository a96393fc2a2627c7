"""The `table` command."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.commands._shared import option_data, option_json, option_out, option_set, options, parse_numbers, show

SECTION = "results"


@click.command("table", epilog="Example: fashion-ntm table 1 --data DIR --format latex")
@click.argument("name", metavar="N")
@click.option("--spec", help="Run spec that fills the table. Default: the one that the table names.")
@click.option("--format", "form", type=click.Choice(["md", "latex", "csv", "json"]), default="md", show_default=True)
@click.option(
    "--seeds", callback=parse_numbers, help="0..4 or 0,2,5. Default: all that are trained on the current data."
)
@option_set
@option_data
@option_out
@option_json
def command(
    name: str,
    spec: str | None,
    form: str,
    seeds: tuple[int, ...] | None,
    overrides: tuple[str, ...],
    data: Path,
    out: Path,
    as_json: bool,
) -> None:
    """Print table N of the paper: measured values, the paper's values, and the commands that fill empty cells.

    --json is short for --format json.
    """
    from pipeline.analysis.render import render
    from pipeline.analysis.tables import TableRequest, build_table

    form = "json" if as_json else form
    words = options(overrides, data, out)
    show(render(build_table(TableRequest(name, data, out, spec or "", overrides, seeds or (), words)), form), nl=False)
