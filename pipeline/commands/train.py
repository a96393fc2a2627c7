"""The `train` command."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.commands._shared import load, log, open_job, option_device, option_models, spec_command


@click.command("train", epilog="Example: fashion-ntm train demo --model cm_ntm --seeds 0..4 --out out/demo --data out/demo")
@spec_command
@option_models
@option_device
@click.option("--force", is_flag=True, help="Train again what is already trained.")
def command(spec: str, overrides: tuple[str, ...], data: Path, out: Path, models: tuple[str, ...],
          seeds: tuple[int, ...] | None, device: str, force: bool) -> None:  # fmt: skip
    """Stage 2: fit memory models on the cached features. Finished runs are kept."""
    from pipeline.stage2 import train_spec

    job, workspace = open_job(spec, overrides, data, out)
    for run in train_spec(job, load(job, data), workspace, models, seeds, device, force, log):
        click.echo(run)
