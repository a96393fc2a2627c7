"""The `leaks` command."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.commands._shared import emit, load, open_job, option_json, spec_command

SECTION = "data"


@click.command("leaks", epilog="Example: fashion-ntm leaks mt_fashioniq-caption --data DIR")
@spec_command
@click.option(
    "--scope",
    type=click.Choice(["category", "dataset"]),
    default="category",
    show_default=True,
    help="Look for overlaps with the train sessions of the own category, or of the whole dataset.",
)
@click.option(
    "--threshold",
    type=click.FloatRange(0, 1, min_open=True),
    default=0.98,
    show_default=True,
    help="Cosine from which two images count as near-duplicates.",
)
@option_json
def command(
    spec: str, overrides: tuple[str, ...], data: Path, out: Path, scope: str, threshold: float, as_json: bool
) -> None:
    """Report overlap of test and train sessions: pairs, images, captions, near-duplicates; and the affected tables.

    Near-duplicates are found by feature similarity, once `extract` has made a store for SPEC.
    """
    from pipeline.analysis.leak_report import leak_report

    job, workspace = open_job(spec, overrides, data, out)
    report = leak_report(job, load(job, data), workspace, scope, threshold)
    emit(report.as_dict(), report.text(), as_json)
