"""The `plan` command."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.commands._shared import emit, load, open_job, option_device, option_json, spec_command


@click.command("plan", epilog="Example: fashion-ntm plan mt_fashioniq-caption --json")
@spec_command
@option_device
@option_json
def command(spec: str, overrides: tuple[str, ...], data: Path, out: Path, device: str, as_json: bool) -> None:
    """What `extract` would do and why: rows to do, done and failed by table, bytes to write. Writes nothing."""
    from pipeline.stage1 import plan_spec

    job, workspace = open_job(spec, overrides, data, out)
    result = plan_spec(job, load(job, data), workspace, device)
    emit(result.as_dict(), result.text(), as_json)
