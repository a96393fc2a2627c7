"""The `status` command."""

from __future__ import annotations

import sys

import click

from pipeline.commands._shared import Job, emit, job_command, option_json

SECTION = "results"


@click.command("status", epilog="Example: fashion-ntm status demo --data out/demo --out out/demo")
@job_command
@option_json
def command(job: Job, as_json: bool) -> None:
    """Show the progress of SPEC: rows, composer, runs by model and seed. Exit code 3 while something is missing."""
    from pipeline.jobs.run import status_of

    result = status_of(*job.parts)
    emit(result.as_dict(), result.text(), as_json)
    sys.exit(0 if result.complete else 3)
