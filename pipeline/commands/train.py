"""The `train` command."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from pipeline.commands._shared import load, log, open_job, option_backend, option_device, option_models, spec_command

SECTION = "stage 2"


@click.command(
    "train", epilog="Example: fashion-ntm train demo --model cm_ntm --seeds 0..4 --out out/demo --data out/demo"
)
@spec_command
@option_models
@option_device
@click.option("--force", is_flag=True, help="Train again what is already trained.")
@option_backend
@click.option(
    "--threads",
    type=click.IntRange(min=1),
    help="CPU threads of a training step.  [default: OMP_NUM_THREADS, or 1]",
)
@click.option(
    "--side-by-side/--one-by-one",
    default=None,
    help="Train a model's seeds at once, or in turn.  [default: at once on CUDA]",
)
@click.option(
    "--diagnostics",
    is_flag=True,
    help="Write row spread, entropies and gradients of the memories each epoch; see `diagnostics`.",
)
def command(
    spec: str,
    overrides: tuple[str, ...],
    data: Path,
    out: Path,
    models: tuple[str, ...],
    seeds: tuple[int, ...] | None,
    device: str,
    force: bool,
    **how: Any,
) -> None:
    """Fit memory models on the cached features. Finished runs are kept."""
    from pipeline.jobs.stage2 import TrainOptions, train_spec

    job, workspace = open_job(spec, overrides, data, out)
    for run in train_spec(job, load(job, data), workspace, models, seeds, device, force, log, TrainOptions(**how)):
        click.echo(run)
