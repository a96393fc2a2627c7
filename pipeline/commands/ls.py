"""The `ls` command."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.commands._shared import emit, option_data, option_json, option_out

SECTION = "look"
KINDS = ["specs", "ablations", "tables", "figures", "datasets", "extractors", "composers", "models", "stores", "runs"]


@click.command("ls", epilog="Example: fashion-ntm ls models --long")
@click.argument("kind", type=click.Choice(KINDS), required=False)
@click.option("--long", "-l", "detail", is_flag=True, help="Options, licences and sizes too.")
@option_data
@option_out
@option_json
def command(kind: str | None, detail: bool, data: Path, out: Path, as_json: bool) -> None:
    """List specs, ablations, tables, figures, datasets, extractors, composers, models, and the stores and runs in OUT.

    A run is current when its training data equals the data that its spec now names in DATA.
    """
    from pipeline.jobs.listing import listing

    found = listing([kind] if kind else KINDS, out, detail, data)
    emit(found.as_dict(), found.text(), as_json)
