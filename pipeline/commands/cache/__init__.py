"""The `cache` commands: inspect, check and maintain the stores of cached features."""

from __future__ import annotations

import click

from pipeline.commands import commands_of

SECTION = "cache"


@click.group(
    "cache",
    commands=commands_of(__name__),
    epilog="Example: fashion-ntm cache verify demo --data out/demo --out out/demo",
)
def command() -> None:
    """Inspect, check, repair and compare feature stores, and import and export features."""
