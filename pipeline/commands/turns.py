"""The `turns` command."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.commands._shared import emit, load, log, open_job, option_device, option_json, option_models, spec_command

SECTION = "results"


@click.command("turns", epilog="Example: fashion-ntm turns chatir --data DIR --file turns.png")
@spec_command
@option_models
@click.option("-k", type=click.IntRange(1), default=10, show_default=True, help="Cutoff K of recall and hits.")
@click.option("--file", "files", type=click.Path(path_type=Path), multiple=True, help="Figure (.png, .svg, .pdf).")
@option_device
@option_json
def command(
    spec: str,
    overrides: tuple[str, ...],
    data: Path,
    out: Path,
    models: tuple[str, ...],
    seeds: tuple[int, ...] | None,
    k: int,
    files: tuple[Path, ...],
    device: str,
    as_json: bool,
) -> None:
    """Rank the final target after every turn with the trained runs of SPEC: recall, hits so far, best rank so far."""
    from pipeline.analysis.drawing import check_suffixes
    from pipeline.analysis.turn_curves import draw_turn_curves, turn_curves
    from pipeline.jobs.stage2 import Experiment

    check_suffixes(files)
    job, workspace = open_job(spec, overrides, data, out)
    found = turn_curves(Experiment(job, load(job, data), workspace, device, log), models, seeds, k)
    if files:
        draw_turn_curves(found, files, k)
        for path in files:
            log(f"wrote {path}")
    emit(found.as_dict(), found.text(k), as_json)
