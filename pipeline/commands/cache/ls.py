"""The `cache ls` command."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.commands._shared import emit, option_json, option_out


@click.command("ls", epilog="Example: fashion-ntm cache ls --out out")
@option_out
@option_json
def command(out: Path, as_json: bool) -> None:
    """List the stores in OUT: rows by table, bytes, failures, and the fingerprint that keys each."""
    from pipeline.jobs.listing import listing

    found = listing(["stores"], out, True)
    emit(found.as_dict(), found.text(), as_json)
