"""The `doctor` command."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from pipeline.commands._shared import emit, option_data, option_json, option_out

SECTION = "bench"


@click.command("doctor", epilog="Example: fashion-ntm doctor --json")
@option_out
@option_data
@option_json
def command(out: Path, data: Path, as_json: bool) -> None:
    """Check this machine: Python, packages, device, threads, disk, folders. Exit code 1 when a check fails."""
    from pipeline.core.doctor import examine

    result = examine(out, data)
    emit(result.as_dict(), result.text(), as_json)
    sys.exit(0 if result.healthy else 1)
