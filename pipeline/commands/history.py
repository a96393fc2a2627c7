"""The `history` command."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.commands._shared import emit, load, log, open_job, option_device, option_json, spec_command

SECTION = "stage 2"


@click.command("history", epilog="Example: fashion-ntm history demo")
@spec_command
@click.option("--draws", type=click.IntRange(1), default=5, show_default=True, help="Draws of each random history.")
@click.option(
    "--part",
    type=click.Choice(["test", "train"]),
    default="test",
    show_default=True,
    help="Sessions to rank; train: those that models are fitted on, among their own targets.",
)
@option_device
@option_json
def command(
    spec: str, overrides: tuple[str, ...], data: Path, out: Path, draws: int, part: str, device: str, as_json: bool
) -> None:
    """Measure how much earlier turns tell about the target: the possible gain of any memory on SPEC's features.

    Ranks sessions by the last turn, by moving averages over their own history and over another session's history
    (control), and by the best fixed weights of the turns; one of these is fitted on the loss of the test sessions.
    """
    from pipeline.analysis.history import history_contribution
    from pipeline.jobs.experiment import Experiment

    job, workspace = open_job(spec, overrides, data, out)
    found = history_contribution(Experiment(job, load(job, data), workspace, device, log), part, draws)
    emit(found.as_dict(), found.text(), as_json)
