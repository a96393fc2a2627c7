"""The `rerank` command."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from pipeline.commands._shared import emit, option_json, stage2_command

if TYPE_CHECKING:
    from pipeline.jobs.experiment import Experiment

SECTION = "stage 2"


@click.command("rerank", epilog="Example: fashion-ntm rerank mt_fashioniq-caption --model ewma --top 50")
@stage2_command
@click.option("--top", type=click.IntRange(1), default=50, help="Candidates to re-rank.")
@click.option(
    "--have", type=float, metavar="WEIGHT", help="Weight of what the feedback asks for. Default: chosen on validation."
)
@click.option(
    "--avoid", type=float, metavar="WEIGHT", help="Weight against the reference images. Default: chosen on validation."
)
@click.option(
    "--keep",
    type=click.FloatRange(0, 1, min_open=True),
    default=0.9,
    metavar="SHARE",
    help="Share of the validation targets that the relevance cut-off keeps.",
)
@option_json
def command(
    experiment: Experiment, models: tuple[str, ...], seeds: tuple[int, ...] | None, as_json: bool, **weights: Any
) -> None:
    """Measure must-have / must-avoid re-ranking and a relevance cut-off; change no run."""
    from pipeline.analysis.rerank import Weights, reports_text, rerank_runs
    from pipeline.jobs.identities import asked_runs

    reports = rerank_runs(experiment, asked_runs(experiment.spec, models, seeds), Weights(**weights))
    emit(reports, reports_text(reports), as_json)
