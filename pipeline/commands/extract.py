"""The `extract` command."""

from __future__ import annotations

from typing import Any

import click

from pipeline.commands._shared import Job, emit, job_command, option_device, option_json
from pipeline.commands._stage1 import BatchSize, option_precision

SECTION = "stage 1"


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
    default=None,
    help="Compute in N processes of this machine, one per GPU if it has GPUs.",
)
@click.option("--max-failures", type=click.IntRange(0), help="Stop once more items than this have failed.")
@click.option("--retry-failed", is_flag=True, help="Try the items again that are recorded as failed.")
@option_json
def command(job: Job, as_json: bool, **how: Any) -> None:
    """Cache the features of every image, feedback text and query of SPEC.

    Resumable: run the same command again, and only missing rows are computed. Exits with 3 if files could not be read.
    """
    if how["scheduler"] and how["local_cluster"]:
        raise click.UsageError("--scheduler and --local-cluster exclude each other")
    from pipeline.jobs.stage1 import extract_spec

    how["local_cluster"] = how["local_cluster"] or 0
    result = extract_spec(*job.parts, job.device, **how)
    emit(result.as_dict(), result.text(), as_json)
    if result.extraction.unread:
        raise click.exceptions.Exit(3)
