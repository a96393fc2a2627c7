"""The `evaluate` command."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from pipeline.commands._shared import emit, option_json, stage2_command

if TYPE_CHECKING:
    from pipeline.jobs.experiment import Experiment

SECTION = "stage 2"


@click.command("evaluate", epilog="Example: fashion-ntm evaluate mt_fashioniq-caption --model lstm --json")
@stage2_command
@option_json
def command(experiment: Experiment, models: tuple[str, ...], seeds: tuple[int, ...] | None, as_json: bool) -> None:
    """Rank every test session with the trained runs; R@1/5/8/10/50 and MRR by category and leak subset."""
    from pipeline.jobs.stage2 import evaluate, summary_text

    summaries = evaluate(experiment, experiment.current_runs(models, seeds))
    emit(summaries, summary_text(summaries), as_json)
