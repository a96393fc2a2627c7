"""The `cache` commands: look into the stores of cached features, check them and keep them in order."""

from __future__ import annotations

import click

from pipeline.commands import commands_of


@click.group(
    "cache",
    commands=commands_of(__name__),
    epilog="Example: fashion-ntm cache verify demo --data out/demo --out out/demo",
)
def command() -> None:
    """Look into feature stores, check, repair and compare them, and move features in and out."""
