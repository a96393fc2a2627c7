"""The `plan` command."""

from __future__ import annotations

from typing import Any

import click

from pipeline.commands._shared import Job, emit, job_command, option_device, option_json
from pipeline.commands._stage1 import BatchSize, Count, option_precision

SECTION = "stage 1"


@click.command("plan", epilog="Example: fashion-ntm plan mt_fashioniq-caption --probe --items 10000000")
@job_command
@option_device
@option_precision
@click.option("--probe", is_flag=True, help="Run a few batches to measure the rate and the time left.")
@click.option(
    "--batch-size", type=BatchSize(), default="auto", help="Items per forward pass of --probe; auto measures."
)
@click.option("--workers", type=click.IntRange(0), help="Decoding processes, of --probe and of the bound of memory.")
@click.option("--items", type=Count(), help="Also estimate machines, devices, hours and GB for a catalog of N images.")
@click.option(
    "--rate",
    type=click.FloatRange(0, min_open=True),
    metavar="R",
    help="Images per second of one device, for --items. Default: measured by --probe.",
)
@click.option("--shard-rows", type=click.IntRange(1), default=4096, help="Rows per commit, for --items.")
@click.option(
    "--devices-per-machine", "per_machine", type=click.IntRange(1), default=1, help="Such as 8 GPUs, for --items."
)
@option_json
def command(
    job: Job, as_json: bool, items: int | None, rate: float | None, shard_rows: int, per_machine: int, **how: Any
) -> None:
    """Show the work of `extract` with reasons; write nothing.

    Counts the rows to do, done, stale and failed by table, the GB to write and the most memory that it takes.
    """
    from pipeline.extraction.cost import cost_of
    from pipeline.jobs.stage1 import plan_spec

    result = plan_spec(*job.parts, job.device, **how)
    values, text = result.as_dict(), result.text()
    if items is not None:
        cost = cost_of(result, items, shard_rows, rate, per_machine)
        values, text = {**values, "cost": cost.as_dict()}, f"{text}\n\n{cost.text()}"
    emit(values, text, as_json)
