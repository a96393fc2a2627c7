"""The `runs compare` command."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.commands._shared import emit, option_data, option_json, option_out


@click.command("compare", epilog="Example: fashion-ntm runs compare 3f2a 81b0 --out out/demo")
@click.argument("runs", metavar="RUN RUN...", nargs=-1, required=True)
@option_data
@option_out
@option_json
def command(runs: tuple[str, ...], data: Path, out: Path, as_json: bool) -> None:
    """Print runs side by side: the settings that differ, and their scores. `compare` tests two for significance."""
    from pipeline.jobs.managed_runs import compare_text, side_by_side

    if len(runs) < 2:
        raise click.UsageError("name two runs or more")
    found = side_by_side(runs, data, out)
    emit(found, compare_text(found), as_json)
