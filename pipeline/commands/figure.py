"""The `figure` command."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.commands._shared import option_data, option_out, option_set, options, show


@click.command("figure", epilog="Example: fashion-ntm figure 8 --data DIR")
@click.argument("name", metavar="N")
@click.option("--run", default="", help="Run spec whose runs are shown. Default: the one that the figure names.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["files", "csv", "json"]),
    default="files",
    show_default=True,
    help="Draw PNG, SVG and PDF files, or print the data.",
)
@click.option("--to", "folder", type=click.Path(path_type=Path), help="Folder for the files. Default: OUT/figures.")
@option_set
@option_data
@option_out
def command(
    name: str, run: str, form: str, folder: Path | None, overrides: tuple[str, ...], data: Path, out: Path
) -> None:
    """Plot figure N of the paper from measured runs, or print its data; points without a run are listed."""
    from pipeline.analysis.figures import paper_figure

    text = paper_figure(name, form, run, overrides, data, out, folder, options(overrides, data, out))
    show(text, nl=False)
