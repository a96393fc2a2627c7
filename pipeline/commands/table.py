"""The `table` command."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.commands._shared import PATH, log, option_data, option_json, option_out, option_set, parse_numbers, show

SECTION = "results"


@click.command("table", epilog="Example: fashion-ntm table 1 --data DIR --format latex")
@click.argument("name", metavar="SPEC")
@click.option("--spec", help="Run spec that fills the table. Default: the one that the table names.")
@click.option("--format", "form", type=click.Choice(["md", "latex", "csv", "json"]), default="md")
@click.option(
    "--seeds", callback=parse_numbers, help="0..4 or 0,2,5. Default: all that are trained on the current data."
)
@click.option(
    "--ranked", multiple=True, metavar="NAME", help="Add a row for a ranked list scored by evaluate; repeatable."
)
@click.option("--run", "runs", multiple=True, help="For leaderboard: add a row for a run by id or folder; repeatable.")
@click.option("--to", type=PATH, help="For leaderboard: folder for leaderboard.md and .json.")
@option_set
@option_data
@option_out
@option_json
def command(
    name: str,
    spec: str | None,
    form: str,
    seeds: tuple[int, ...] | None,
    ranked: tuple[str, ...],
    runs: tuple[str, ...],
    to: Path | None,
    overrides: tuple[str, ...],
    data: Path,
    out: Path,
    as_json: bool,
) -> None:
    """Print a table: measured values, the paper's, chance, and commands that fill empty cells.

    SPEC is a table of the paper (1 to 5), `leaderboard`, a run spec (one row per model) or an ablation (one row per
    point). --json is short for --format json.
    """
    from manifests.table_spec import Leaderboard, load_table_spec
    from pipeline.analysis.leaderboard import build_leaderboard
    from pipeline.analysis.leaderboard_files import leaderboard_text, write_leaderboard
    from pipeline.analysis.own_tables import kind_of_table
    from pipeline.analysis.render import render
    from pipeline.analysis.tables import TableRequest, build_table

    form = "json" if as_json else form
    request = TableRequest(name, data, out, spec or "", overrides, seeds or (), ranked)
    table = load_table_spec(name) if kind_of_table(name) == "table" else None
    if isinstance(table, Leaderboard):
        found = build_leaderboard(table, request, runs)
        for path in write_leaderboard(found, to) if to else ():
            log(f"wrote {path}")
        show(leaderboard_text(found, form), nl=False)
        return
    if runs or to:
        raise click.UsageError("--run and --to belong to `table leaderboard`")
    show(render(build_table(request), form), nl=False)
