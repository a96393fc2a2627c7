"""The `ls` command."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.commands._shared import emit, option_data, option_json, option_out

SECTION = "look"
KINDS = [
    "specs",
    "ablations",
    "tables",
    "figures",
    "datasets",
    "extractors",
    "composers",
    "models",
    "presets",
    "stores",
    "runs",
]


@click.command("ls", epilog="Example: fashion-ntm ls models --long")
@click.argument("kind", type=click.Choice(KINDS), required=False)
@click.option("--long", "-l", "detail", is_flag=True, help="Also list options, licenses and sizes.")
@click.option(
    "--where", multiple=True, metavar="KEY=VALUE", help="Only runs with this value, e.g. model=cm_ntm. Repeatable."
)
@click.option(
    "--sort",
    default="",
    show_default=False,
    metavar="KEY",
    help="Sort runs by test, validation, date, seed, ...; -KEY: descending.",
)
@option_data
@option_out
@option_json
def command(
    kind: str | None, detail: bool, where: tuple[str, ...], sort: str, data: Path, out: Path, as_json: bool
) -> None:
    """List specs, datasets, parts, tables and figures, and the stores and runs in OUT.

    A run is current when its training data equals the data that its spec now names in DATA. Keys of runs are those
    of --json, nested ones dotted: `ls runs --where options.stages=2 --sort -test`.
    """
    if kind != "runs" and (where or sort):
        raise click.UsageError("--where and --sort belong to `ls runs`")
    from pipeline.jobs.listing import listing

    found = listing([kind] if kind else KINDS, out, detail, data, where, sort)
    emit(found.as_dict(), found.text(), as_json)
