"""The `index` command."""

from __future__ import annotations

import click

from pipeline.commands._shared import Job, emit, job_command, option_device, option_json

SECTION = "stage 1"


@click.command("index", epilog="Example: fashion-ntm index shop.toml --data DIR")
@job_command
@option_device
@click.option("--retry-failed", is_flag=True, help="Try the items again that are recorded as failed.")
@option_json
def command(job: Job, retry_failed: bool, as_json: bool) -> None:
    """Compute the features of SPEC's images for `search` and `serve`; needs no sessions.

    Resumable: run the same command again after the catalog has changed, and only new images are computed.
    """
    from pipeline.jobs.index import index_spec

    result = index_spec(*job.parts, job.device, retry_failed=retry_failed)
    emit(result.as_dict(), result.text(), as_json)
