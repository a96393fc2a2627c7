"""The `run` command."""

from __future__ import annotations

import click

from pipeline.commands._shared import Job, log, option_device, option_models, sessions_command, show

SECTION = "stage 2"


@click.command("run", epilog="Example: fashion-ntm run mt_fashioniq-caption --data DIR")
@sessions_command
@option_models
@option_device
def command(job: Job, models: tuple[str, ...], seeds: tuple[int, ...] | None) -> None:
    """Run both stages of SPEC in order: extract, fit-composer, train, evaluate. Finished work is kept."""
    from pipeline.jobs.run import run_spec
    from pipeline.jobs.specs import check_sessions

    check_sessions(job.spec, job.dataset, models)
    show(run_spec(*job.parts, job.device, log, models, seeds))
