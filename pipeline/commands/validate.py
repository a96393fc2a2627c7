"""The `validate` command."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.commands._shared import emit, load, open_job, option_json, spec_command

SECTION = "data"


@click.command("validate", epilog="Example: fashion-ntm validate my-run.toml")
@spec_command
@option_json
def command(spec: str, overrides: tuple[str, ...], data: Path, out: Path, as_json: bool) -> None:
    """Check SPEC and its dataset; report every problem with file, place and fix (exit code 4)."""
    from pipeline.jobs.run import describe
    from pipeline.jobs.specs import check_sessions

    job, _ = open_job(spec, overrides, data, out)
    dataset = load(job, data)
    check_sessions(job, dataset)
    result = describe(job, dataset)
    emit(result.as_dict(), result.text(), as_json)
