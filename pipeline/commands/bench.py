"""The `bench` command."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from pipeline.commands._shared import FILE, INTERRUPTED, emit, option_json, progress_line

SECTION = "bench"


class Bench(click.Command):
    """Command whose ``--help`` after a benchmark's name lists the sizes of this benchmark. It is not resumable."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        asked = [word for word in args if word in ctx.help_option_names]
        if asked and args[0] not in asked and args[0] != "list":
            from pipeline.bench import sizes_of, summaries

            sizes, name = sizes_of(args[0]), args[0]
            click.echo(f"bench {name}: {summaries()[name]}\n\nSizes, for --set KEY=VALUE (TOML), with their defaults:")
            click.echo("\n".join(f"  {key}={value}" for key, value in sizes.items()) or "  none")
            ctx.exit()
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            click.echo("interrupted: a benchmark is not resumed; the same command starts it again", err=True)
            ctx.exit(INTERRUPTED)


@click.command("bench", cls=Bench, epilog="Example: fashion-ntm bench train --file bench.json")
@click.argument("name", metavar="NAME")
@click.option("--file", type=FILE, help="Also write every figure printed to this JSON file.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a size of the benchmark.")
@option_json
def command(name: str, file: Path | None, overrides: tuple[str, ...], as_json: bool) -> None:
    """Run benchmark NAME on this machine. `bench list` lists them, `bench NAME --help` its sizes.

    Figures are medians of interleaved measurements. Exit code 1 when `bench kill` finds a damaged store.
    """
    from pipeline.bench import measure, summaries

    if name == "list":
        found = summaries()
        emit(found, "\n".join(f"{key:10} {about}" for key, about in found.items()), as_json)
        return
    with progress_line() as say:
        record, text = measure(name, file, overrides, say)
    emit(record, text, as_json)
    sys.exit(1 if isinstance(record["figures"], dict) and record["figures"].get("passed") is False else 0)
