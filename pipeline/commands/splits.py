"""The `splits` command."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.commands._shared import PATH, Job, emit, load, log, option_json, sessions_command

SECTION = "data"


@click.command("splits", epilog="Example: fashion-ntm splits mt_fashioniq-caption --data DIR --to lists")
@sessions_command
@click.option("--to", type=PATH, help="Folder for one list of session ids per split.")
@option_json
def command(job: Job, to: Path | None, as_json: bool) -> None:
    """Check the clean splits of SPEC's dataset (dataset.protocol); write their ids with --to."""
    from pipeline.analysis.splits import clean_splits, splits_text, write_splits

    whole = {key: value for key, value in job.spec.dataset.model_dump().items() if key != "protocol"}
    spec = job.spec.model_copy(update={"dataset": type(job.spec.dataset)(**whole)})
    splits = clean_splits(load(spec, job.data))
    for path in write_splits(splits, to) if to else ():
        log(f"wrote {path}")
    emit([s.as_dict() for s in splits], splits_text(splits), as_json)
