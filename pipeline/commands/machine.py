"""Commands on this machine: bench and doctor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from pipeline.commands._options import FILE, option_folders
from pipeline.commands._shared import INTERRUPTED, Printed, prints, progress_line

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
@prints
def bench(name: str, file: Path | None, overrides: tuple[str, ...]) -> Printed:
    """Run benchmark NAME on this machine. `bench list` lists them, `bench NAME --help` its sizes.

    Figures are medians of interleaved measurements. Exit code 1 when `bench kill` finds a damaged store.
    """
    from pipeline.bench import measure, summaries

    if name == "list":
        return summaries(), "\n".join(f"{key:10} {about}" for key, about in summaries().items())
    with progress_line() as say:
        record, text = measure(name, file, overrides, say)
    failed = isinstance(record["figures"], dict) and record["figures"].get("passed") is False
    return record, text, 1 if failed else 0


@click.command("doctor", epilog="Example: fashion-ntm doctor --json")
@option_folders
@prints
def doctor(out: Path, data: Path) -> Printed:
    """Check this machine: Python, packages, device, threads, disk, folders. Exit code 1 when a check fails."""
    from pipeline.core.doctor import examination_text, examine

    result = examine(out, data)
    return result, examination_text(result), 0 if result["healthy"] else 1
