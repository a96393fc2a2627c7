"""The `diagnostics` command."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.commands._shared import option_out


@click.command("diagnostics", epilog="Example: fashion-ntm diagnostics 1f3a --to rows.png --to rows.svg --out out/demo")
@click.argument("runs", metavar="RUN...", nargs=-1, required=True)
@click.option(
    "--to",
    "files",
    type=click.Path(path_type=Path),
    multiple=True,
    help="File to draw into (.png, .svg or .pdf); repeatable. Default: diagnostics.png and .svg in the run's folder.",
)
@option_out
def command(runs: tuple[str, ...], files: tuple[Path, ...], out: Path) -> None:
    """Plot how the memory rows diverge during training. RUN: id or folder of a run trained with --diagnostics."""
    from pipeline.analysis.diagnostics_figure import diagnostics_figure
    from pipeline.core.workspace import Workspace

    click.echo(diagnostics_figure(runs, Workspace(out).runs, files))
