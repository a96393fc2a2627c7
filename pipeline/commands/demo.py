"""The `demo` command."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.commands._shared import folder_option, log, option_device

SECTION = "look"


@click.command("demo", epilog="Example: fashion-ntm demo --out out/demo")
@folder_option("out", "Folder for images, store and runs.", "demo")
@click.option(
    "--rebuild-model",
    is_flag=True,
    help="Train the demo's single-turn model and composer from nothing into OUT/model, and compare its score with the "
    "shipped one (minutes).",
)
@option_device
def command(out: Path, rebuild_model: bool, device: str) -> None:
    """Run both stages on the embedded demo and print a table. Needs no network and no GPU; under two minutes."""
    from pipeline.demo import run

    if rebuild_model:
        click.echo(run.rebuild(out, log))
    else:
        click.echo(run.demo(out, device, log))
