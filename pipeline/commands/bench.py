"""The `bench` command."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("bench", epilog="Example: fashion-ntm bench train --json bench.json")
@click.argument("name", metavar="NAME")
@click.option("--json", "file", type=click.Path(path_type=Path), help="Also write every figure printed to FILE.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a size of the benchmark.")
def command(name: str, file: Path | None, overrides: tuple[str, ...]) -> None:
    """Run benchmark NAME on this machine (see `bench list`). Figures are medians of interleaved measurements."""
    from pipeline.bench import run_bench

    click.echo(run_bench(name, file, overrides))
