"""The `evaluate` command."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.commands._shared import emit, load, log, open_job, option_device, option_json, option_models, spec_command

SECTION = "stage 2"


@click.command("evaluate", epilog="Example: fashion-ntm evaluate mt_fashioniq-caption --model lstm --json")
@spec_command
@option_models
@option_device
@option_json
def command(
    spec: str,
    overrides: tuple[str, ...],
    data: Path,
    out: Path,
    models: tuple[str, ...],
    seeds: tuple[int, ...] | None,
    device: str,
    as_json: bool,
) -> None:
    """Rank every test session with the trained runs; R@1/5/8/10/50 and MRR by category and leak subset."""
    from pipeline.jobs.stage2 import evaluate_spec, summary_text

    job, workspace = open_job(spec, overrides, data, out)
    summaries = evaluate_spec(job, load(job, data), workspace, models, seeds, device, log)
    emit(summaries, summary_text(summaries), as_json)
