"""The `runs` commands: show, compare and remove training runs."""

from __future__ import annotations

import click

from pipeline.commands import commands_of

SECTION = "results"


@click.group("runs", commands=commands_of(__name__), epilog="Example: fashion-ntm runs show 3f2a --out out/demo")
def command() -> None:
    """Show, compare and remove runs; `ls runs` lists them."""
