"""The `pull` command."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.commands._shared import option_out, show

SECTION = "results"


@click.command("pull", epilog="Example: fashion-ntm pull user/name --out out/demo")
@click.argument("name", metavar="USER/NAME")
@click.option("--revision", help="Branch, tag or commit. Default: the newest.")
@option_out
def command(name: str, revision: str | None, out: Path) -> None:
    """Download a run that `push` uploaded, and check its seal."""
    from pipeline.export.hub import pull_run

    show(str(pull_run(name, out / "runs", revision).path))
