"""The `leaks` command."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from pipeline.commands._shared import Job, emit, option_json, sessions_command

if TYPE_CHECKING:
    from manifests.leaks import Scope

SECTION = "data"


@click.command("leaks", epilog="Example: fashion-ntm leaks mt_fashioniq-caption --data DIR")
@sessions_command
@click.option(
    "--scope",
    type=click.Choice(["category", "dataset"]),
    default="category",
    help="Look for overlaps with the train sessions of the own category, or of the whole dataset.",
)
@click.option(
    "--threshold",
    type=click.FloatRange(0, 1, min_open=True),
    default=0.98,
    metavar="COSINE",
    help="Cosine from which two images count as near-duplicates.",
)
@option_json
def command(job: Job, scope: Scope, threshold: float, as_json: bool) -> None:
    """Report overlap of test and train sessions, and the tables that it affects.

    Lists shared pairs, images and captions; and near-duplicates by feature similarity, once `extract` has made a store
    for SPEC.
    """
    from pipeline.analysis.leak_report import leak_report

    report = leak_report(*job.parts, scope, threshold)
    emit(report.as_dict(), report.text(), as_json)
