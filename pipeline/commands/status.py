"""The `status` command."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from pipeline.commands._shared import emit, load, open_job, option_json, spec_command

SECTION = "results"


@click.command("status", epilog="Example: fashion-ntm status demo --data out/demo --out out/demo")
@spec_command
@option_json
def command(spec: str, overrides: tuple[str, ...], data: Path, out: Path, as_json: bool) -> None:
    """Show the progress of SPEC: rows, composer, runs by model and seed. Exit code 3 while something is missing."""
    from pipeline.jobs.run import status_of

    job, workspace = open_job(spec, overrides, data, out)
    result = status_of(job, load(job, data), workspace)
    emit(result.as_dict(), result.text(), as_json)
    sys.exit(0 if result.complete else 3)
