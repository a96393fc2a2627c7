"""The `export` command."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.commands._shared import PATH, emit, log, option_data, option_json, option_out

if TYPE_CHECKING:
    from pipeline.export.run import Format

SECTION = "results"


@click.command(
    "export", epilog="Example: fashion-ntm export 3f2a --format onnx --to model --data out/demo --out out/demo"
)
@click.argument("run", metavar="RUN")
@click.option("--to", "folder", type=PATH, required=True, help="Folder to write; new or empty.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["torch", "onnx"]),
    default="torch",
    help="torch: torch.export files (.pt2); onnx needs the extra fashion-ntm[onnx].",
)
@click.option("--turns", type=click.IntRange(1, 64), default=8, help="Longest session of the graph.")
@option_data
@option_out
@option_json
def command(run: str, folder: Path, form: Format, turns: int, data: Path, out: Path, as_json: bool) -> None:
    """Export RUN's memory model and composer as torch or ONNX graphs.

    The graphs have a dynamic batch and are checked against PyTorch. RUN is an id, its first digits or a run's folder.
    export.json describes the inputs and outputs. `cache export` writes the features.
    """
    from pipeline.export.run import export_named

    result = export_named(run, folder, form, turns, data, out, log)
    emit(result.as_dict(), result.text(), as_json)
