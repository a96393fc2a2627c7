"""The `turns` command."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.commands._shared import FILE, emit, log, option_json, stage2_command

if TYPE_CHECKING:
    from pipeline.jobs.experiment import Experiment

SECTION = "results"


@click.command("turns", epilog="Example: fashion-ntm turns chatir --data DIR --file turns.png")
@stage2_command
@click.option("-k", type=click.IntRange(1), default=10, help="Cutoff K of recall and hits.")
@click.option("--file", "files", type=FILE, multiple=True, help="Figure (.png, .svg, .pdf).")
@option_json
def command(
    experiment: Experiment,
    models: tuple[str, ...],
    seeds: tuple[int, ...] | None,
    k: int,
    files: tuple[Path, ...],
    as_json: bool,
) -> None:
    """Rank the final target after every turn with the trained runs of SPEC.

    Prints recall, hits so far and the best rank so far, by turn.
    """
    from pipeline.analysis.turn_curves import draw_turn_curves, turn_curves

    found = turn_curves(experiment, models, seeds, k)
    if files:
        draw_turn_curves(found, files, k)
        for path in files:
            log(f"wrote {path}")
    emit(found.as_dict(), found.text(k), as_json)
