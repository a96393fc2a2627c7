"""The `run` command."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.commands._shared import load, log, open_job, option_device, option_models, show, spec_command

SECTION = "stage 2"


@click.command("run", epilog="Example: fashion-ntm run mt_fashioniq-caption --data DIR")
@spec_command
@option_models
@option_device
def command(
    spec: str,
    overrides: tuple[str, ...],
    data: Path,
    out: Path,
    models: tuple[str, ...],
    seeds: tuple[int, ...] | None,
    device: str,
) -> None:
    """Run both stages of SPEC in order: extract, fit-composer, train, evaluate. Finished work is kept."""
    from pipeline.jobs.run import Job, run_spec
    from pipeline.jobs.specs import check_sessions

    opened, workspace = open_job(spec, overrides, data, out)
    dataset = load(opened, data)
    check_sessions(opened, dataset, models)
    show(run_spec(Job(opened, dataset, workspace, device, log), models, seeds))
