"""The `index` command."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.commands._shared import emit, load, open_job, option_device, option_json, spec_command

SECTION = "stage 1"


@click.command("index", epilog="Example: fashion-ntm index shop.toml --data DIR")
@spec_command
@option_device
@click.option("--retry-failed", is_flag=True, help="Try again what is recorded as failed.")
@option_json
def command(
    spec: str, overrides: tuple[str, ...], data: Path, out: Path, device: str, retry_failed: bool, as_json: bool
) -> None:
    """Index SPEC's catalogue for `search` and `serve`: compute the features of its images; needs no sessions.

    Resumable: run the same command again after the catalogue has changed, and only new images are computed.
    """
    from pipeline.jobs.index import index_spec

    job, workspace = open_job(spec, overrides, data, out)
    result = index_spec(job, load(job, data), workspace, device, retry_failed=retry_failed)
    emit(result.as_dict(), result.text(), as_json)
