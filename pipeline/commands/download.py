"""The `download` command."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.commands._shared import log, option_data

SECTION = "data"


@click.command("download", epilog="Example: fashion-ntm download mt_fashioniq --data data")
@click.argument("name", metavar="DATASET")
@option_data
@click.option(
    "--from", "source", metavar="DIR|URL", help="Local folder or base URL to copy from instead of the public address."
)
def command(name: str, data: Path, source: str | None) -> None:
    """Fetch the public annotation files of DATASET and check their SHA-256.

    DATASET is mt_fashioniq, shoes, blip2_captions or chatir.
    """
    from manifests.downloads import download as fetch

    done = fetch(name, data, source, progress=log)
    for note in done.notes:
        log(f"note: {note}")
    click.echo(f"{len(done.fetched)} files fetched into {data}, {len(done.skipped)} were there and verified")
