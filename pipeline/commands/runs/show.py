"""The `runs show` command."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.commands._shared import emit, option_data, option_json, option_out


@click.command("show", epilog="Example: fashion-ntm runs show 3f2a --out out/demo")
@click.argument("run", metavar="RUN")
@option_data
@option_out
@option_json
def command(run: str, data: Path, out: Path, as_json: bool) -> None:
    """Show everything that RUN records: options, training, scores, data, files. RUN is an id or its first digits."""
    from pipeline.jobs.managed_runs import show_run, show_text

    found = show_run(run, data, out)
    emit(found, show_text(found), as_json)
