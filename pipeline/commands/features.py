"""Commands that compute features: extract, plan, index."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import click

from pipeline.commands._shared import Job, Printed, job_command, option_device, prints

SECTION = "stage 1"


class BatchSize(click.ParamType):
    """A positive number, or "auto"."""

    name = "N|auto"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "auto" or (str(value).isdigit() and int(value) > 0):
            return value if value == "auto" else int(value)
        self.fail(f"{value!r} is neither a number of items from 1 up nor 'auto'", param, ctx)


class Count(click.ParamType):
    """A positive number, also as 1e8."""

    name = "N"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        with suppress(ValueError, OverflowError):
            if (count := float(value)) >= 1 and count.is_integer():
                return int(value) if str(value).isdigit() else int(count)
        self.fail(f"{value!r} is no number of items such as 10000000 or 1e7", param, ctx)


option_precision = click.option(
    "--precision",
    type=click.Choice(["fp32", "bf16", "fp16", "auto"]),
    help="Number format of the model's computation, part of the store's fingerprint; auto is bf16 where the "
    "device has units for it. Default: the spec's extractor.dtype.",
)


@click.command("extract", epilog="Example: fashion-ntm extract mt_fashioniq-caption --set extractor.model=DIR")
@job_command
@option_device
@click.option(
    "--batch-size",
    type=BatchSize(),
    default="auto",
    help="Items per forward pass; auto measures; a resumed job keeps its size.",
)
@option_precision
@click.option(
    "--form",
    type=click.Choice(["plain", "channels-last", "compiled"]),
    default="plain",
    help="How the image tower runs; the features agree up to rounding. Compiling takes about a minute.",
)
@click.option(
    "--workers", type=click.IntRange(0), help="Decoding processes. Default: the CPUs that the model leaves free."
)
@click.option("--shard-rows", type=click.IntRange(1), default=4096, help="Rows per commit.")
@click.option(
    "--scheduler", metavar="ADDRESS", help="Compute on the Dask cluster at tcp://host:port (docs/cluster.md)."
)
@click.option(
    "--local-cluster",
    type=click.IntRange(1),
    help="Compute in N processes of this machine, one per GPU if it has GPUs.",
)
@click.option("--max-failures", type=click.IntRange(0), help="Stop once more items than this have failed.")
@click.option("--retry-failed", is_flag=True, help="Try the items again that are recorded as failed.")
@prints
def extract(job: Job, **how: Any) -> Printed:
    """Cache the features of every image, feedback text and query of SPEC.

    Resumable: run the same command again, and only missing rows are computed. Exits with 3 if files could not be read.
    """
    from pipeline.jobs.stage1 import extract_spec

    if how["scheduler"] and how["local_cluster"]:
        raise click.UsageError("--scheduler and --local-cluster exclude each other")
    result = extract_spec(*job.parts, job.device, **how)
    return result.as_dict(), result.text(), 3 if result.extraction.unread else 0


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
@prints
def plan(job: Job, items: int | None, rate: float | None, shard_rows: int, per_machine: int, **how: Any) -> Printed:
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
    return values, text


@click.command("index", epilog="Example: fashion-ntm index shop.toml --data DIR")
@job_command
@option_device
@click.option("--retry-failed", is_flag=True, help="Try the items again that are recorded as failed.")
@prints
def index(job: Job, retry_failed: bool) -> Printed:
    """Compute the features of SPEC's images for `search` and `serve`; needs no sessions.

    Resumable: run the same command again after the catalog has changed, and only new images are computed.
    """
    from pipeline.jobs.stage1 import index_spec

    return index_spec(*job.parts, job.device, retry_failed=retry_failed)
