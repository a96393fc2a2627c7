"""The `results` command."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.commands._shared import FOLDER, emit, option_json, stage2_command

if TYPE_CHECKING:
    from pipeline.jobs.experiment import Experiment

SECTION = "results"


@click.command("results", epilog="Example: fashion-ntm results demo --model lstm --format trec --to lists")
@stage2_command
@click.option("--format", "form", type=click.Choice(["trec", "jsonl", "cirr", "circo", "beir"]), default="trec")
@click.option("--to", type=FOLDER, required=True, help="Output folder.")
@click.option(
    "--top", type=click.IntRange(1), default=1000, metavar="K", help="Candidates per session; server formats take 50."
)
@option_json
def command(
    experiment: Experiment,
    models: tuple[str, ...],
    seeds: tuple[int, ...] | None,
    form: str,
    to: Path,
    top: int,
    as_json: bool,
) -> None:
    """Write the ranked test sessions of trained runs for other tools.

    trec: a run and its qrels. jsonl: one session per line. cirr, circo: the files of their servers. beir: corpus,
    queries, qrels, their features and the run, by category. `evaluate --ranked` reads all of them back. Several runs
    get a folder each.
    """
    from pipeline.jobs.ranked import write_results

    runs = experiment.finished(experiment.current_runs(models, seeds))
    made = {}
    for run in runs:
        name = f"{run.asked}-{run.seed}"
        made[name] = [str(f) for f in write_results(experiment, run, form, to if len(runs) == 1 else to / name, top)]
    emit(made, "\n".join(f"{name}  {file}" for name, files in made.items() for file in files), as_json)
