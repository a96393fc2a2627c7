"""The `validate` command."""

from __future__ import annotations

import click

from pipeline.commands._shared import Job, emit, job_command, option_json

SECTION = "data"


@click.command("validate", epilog="Example: fashion-ntm validate my-run.toml")
@job_command
@option_json
def command(job: Job, as_json: bool) -> None:
    """Check SPEC and its dataset; report every problem with file, place and fix (exit code 4)."""
    from pipeline.jobs.run import describe
    from pipeline.jobs.specs import check_sessions

    check_sessions(job.spec, job.dataset)
    result = describe(job.spec, job.dataset)
    emit(result.as_dict(), result.text(), as_json)
