"""Commands on datasets: download, validate, splits, leaks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.commands._options import PATH, choice, option_data
from pipeline.commands._shared import Job, Printed, job_command, load, log, prints, sessions_command

if TYPE_CHECKING:
    from manifests.leaks import Scope

SECTION = "data"


@click.command("download", epilog="Example: fashion-ntm download mt_fashioniq --data data")
@click.argument("name", metavar="DATASET")
@option_data
@click.option(
    "--from", "source", metavar="DIR|URL", help="Local folder or base URL to copy from instead of the public address."
)
def download(name: str, data: Path, source: str | None) -> None:
    """Fetch the public annotation files of DATASET and check their SHA-256.

    DATASET is mt_fashioniq, shoes, blip2_captions or chatir.
    """
    from manifests.downloads import download as fetch

    done = fetch(name, data, source, progress=log)
    for note in done.notes:
        log(f"note: {note}")
    click.echo(f"{len(done.fetched)} files fetched into {data}, {len(done.skipped)} were there and verified")


@click.command("validate", epilog="Example: fashion-ntm validate my-run.toml")
@job_command
@prints
def validate(job: Job) -> Printed:
    """Check SPEC and its dataset; report every problem with file, place and fix (exit code 4)."""
    from pipeline.jobs.run import describe, description_text
    from pipeline.jobs.specs import check_sessions

    check_sessions(job.spec, job.dataset)
    found = describe(job.spec, job.dataset)
    return found, description_text(found)


@click.command("splits", epilog="Example: fashion-ntm splits mt_fashioniq-caption --data DIR --to lists")
@sessions_command
@click.option("--to", type=PATH, help="Folder for one list of session ids per split.")
@prints
def splits(job: Job, to: Path | None) -> Printed:
    """Check the clean splits of SPEC's dataset (dataset.protocol); write their ids with --to."""
    from pipeline.analysis.splits import clean_splits, splits_text, write_splits

    whole = {key: value for key, value in job.spec.dataset.model_dump().items() if key != "protocol"}
    spec = job.spec.model_copy(update={"dataset": type(job.spec.dataset)(**whole)})
    splits = clean_splits(load(spec, job.data))
    for path in write_splits(splits, to) if to else ():
        log(f"wrote {path}")
    return [s.as_dict() for s in splits], splits_text(splits)


@click.command("leaks", epilog="Example: fashion-ntm leaks mt_fashioniq-caption --data DIR")
@sessions_command
@choice(
    "--scope",
    of=("category", "dataset"),
    help="Look for overlaps with the train sessions of the own category, or of the whole dataset.",
)
@click.option(
    "--threshold",
    type=click.FloatRange(0, 1, min_open=True),
    default=0.98,
    metavar="COSINE",
    help="Cosine from which two images count as near-duplicates.",
)
@prints
def leaks(job: Job, scope: Scope, threshold: float) -> Printed:
    """Report overlap of test and train sessions, and the tables that it affects.

    Lists shared pairs, images and captions; and near-duplicates by feature similarity, once `extract` has made a store
    for SPEC.
    """
    from pipeline.analysis.leak_report import leak_report

    return leak_report(*job.parts, scope, threshold)
