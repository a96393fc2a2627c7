"""The `extract` command."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from pipeline.commands._shared import emit, load, open_job, option_device, option_json, spec_command


@click.command("extract", epilog="Example: fashion-ntm extract mt_fashioniq-caption --set extractor.model=DIR")
@spec_command
@option_device
@click.option("--batch-size", type=click.IntRange(1), default=64, show_default=True, help="Items per forward pass.")
@click.option("--workers", type=click.IntRange(0), default=2, show_default=True, help="Decoding threads.")
@click.option("--max-failures", type=click.IntRange(0), help="Stop once more items than this have failed.")
@click.option("--retry-failed", is_flag=True, help="Try again what is recorded as failed.")
@option_json
def command(
    spec: str, overrides: tuple[str, ...], data: Path, out: Path, device: str, as_json: bool, **how: Any
) -> None:
    """Stage 1: cache the features of every image, feedback text and query of SPEC.

    Resumable: run the same command again and only what is missing is computed.
    """
    from pipeline.stage1 import extract_spec

    job, workspace = open_job(spec, overrides, data, out)
    result = extract_spec(job, load(job, data), workspace, device, **how)
    emit(result.as_dict(), result.text(), as_json)
