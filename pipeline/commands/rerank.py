"""The `rerank` command."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.commands._shared import emit, load, log, open_job, option_device, option_json, option_models, spec_command

SECTION = "stage 2"


@click.command("rerank", epilog="Example: fashion-ntm rerank mt_fashioniq-caption --model ewma --top 50")
@spec_command
@option_models
@option_device
@option_json
@click.option("--top", type=click.IntRange(1), default=50, show_default=True, help="Candidates to re-rank.")
@click.option("--have", type=float, help="Weight of what the feedback asks for. Default: chosen on validation.")
@click.option("--avoid", type=float, help="Weight against the reference images. Default: chosen on validation.")
@click.option(
    "--keep",
    type=click.FloatRange(0, 1, min_open=True),
    default=0.9,
    show_default=True,
    help="Share of the validation targets that the relevance cut-off keeps.",
)
def command(
    spec: str,
    overrides: tuple[str, ...],
    data: Path,
    out: Path,
    models: tuple[str, ...],
    seeds: tuple[int, ...] | None,
    device: str,
    as_json: bool,
    top: int,
    have: float | None,
    avoid: float | None,
    keep: float,
) -> None:
    """Measure must-have / must-avoid re-ranking and a relevance cut-off on trained runs; changes no run."""
    from pipeline.analysis.rerank import Weights, reports_text, rerank_spec

    job, workspace = open_job(spec, overrides, data, out)
    weights = Weights(top, have, avoid, keep)
    reports = rerank_spec(job, load(job, data), workspace, models, seeds, weights, device, log)
    emit(reports, reports_text(reports), as_json)
