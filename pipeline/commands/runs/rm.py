"""The `runs rm` command."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.commands._shared import emit, option_data, option_json, option_out


@click.command("rm", epilog="Example: fashion-ntm runs rm --where current='of other data' --dry-run --out out/demo")
@click.argument("runs", metavar="[RUN]...", nargs=-1)
@click.option(
    "--where", multiple=True, metavar="KEY=VALUE", help="All runs with this value, as in `ls runs`. Repeatable."
)
@click.option("--dry-run", is_flag=True, help="Print what would be removed, and how many bytes; remove nothing.")
@option_data
@option_out
@option_json
def command(runs: tuple[str, ...], where: tuple[str, ...], dry_run: bool, data: Path, out: Path, as_json: bool) -> None:
    """Remove runs with their weights and results. A run that is being trained is refused; stores are not touched."""
    from pipeline.jobs.managed_runs import remove_runs, removed_text

    if bool(runs) == bool(where):
        raise click.UsageError("name the runs, or choose them with --where")
    found = remove_runs(runs, where, data, out, dry_run)
    emit(found, removed_text(found), as_json)
