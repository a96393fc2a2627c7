"""The `history` command."""

from __future__ import annotations

from typing import Literal

import click

from pipeline.commands._shared import Job, emit, option_device, option_json, sessions_command

SECTION = "stage 2"


@click.command("history", epilog="Example: fashion-ntm history demo")
@sessions_command
@click.option("--draws", type=click.IntRange(1), default=5, help="Draws of each random history.")
@click.option(
    "--part",
    type=click.Choice(["test", "train"]),
    default="test",
    help="Sessions to rank; train: those that models are fitted on, among their own targets.",
)
@option_device
@option_json
def command(job: Job, draws: int, part: Literal["test", "train"], as_json: bool) -> None:
    """Measure how much earlier turns tell about the target: the possible gain of a memory.

    On SPEC's features, ranks sessions by the last turn, by moving averages over their own history and over another
    session's history (control), and by the best fixed weights of the turns; one of these is fitted on the loss of the
    test sessions.
    """
    from pipeline.analysis.history import history_contribution

    found = history_contribution(job.experiment, part, draws)
    emit(found.as_dict(), found.text(), as_json)
