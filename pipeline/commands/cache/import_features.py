"""The `cache import` command."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import click

from pipeline.commands._shared import EXISTING_FOLDER, Job, emit, job_command, option_json


@click.command("import", epilog="Example: fashion-ntm cache import arrays demo --data out/demo --out out/mine")
@click.argument("folder", metavar="DIR", type=EXISTING_FOLDER)
@job_command
@click.option("--normalise", is_flag=True, help="Scale the rows to unit L2 norm. Default: keep every bit.")
@click.option(
    "--no-concatenated",
    is_flag=True,
    help="The arrays have no query of all captions as one text (turn 0); every model but `cat` works without.",
)
@click.option("--partial", is_flag=True, help="Import what is there; name the rows that are missing or unknown.")
@option_json
def command(job: Job, folder: Path, normalise: bool, no_concatenated: bool, partial: bool, as_json: bool) -> None:
    """Make a store for SPEC from your own feature arrays in DIR, in place of its extractor.

    DIR holds query.npy and target.npy, float16 or float32 [rows, D] (or .safetensors; or image and text, for a
    composer), each with <table>.ids.txt or .ids.jsonl, one line per row: image ids for target, session<TAB>turn for
    query (turns from 1; 0 for all captions of the session as one text). Everything is checked first (dtype, shape,
    NaN, repeated ids, unknown ids, missing rows) and reported together. The fingerprint is the digest of the arrays.

    --set accepts the options of extractor "imported" (contaminated_on, store_dtype, ...), and no others.
    """
    from pipeline.stores.imports import import_features

    words = {"extractor.name": "imported", "extractor.folder": json.dumps(str(folder))}
    words |= {"extractor.normalise": "true"} if normalise else {}
    words |= {"extractor.concatenated": "false"} if no_concatenated else {}
    for override in job.overrides:
        if (key := override.partition("=")[0].strip()) in words:
            raise click.UsageError(f"--set {override}: DIR and the options of this command set {key} to {words[key]}")
    job = replace(job, overrides=(*job.overrides, *(f"{key}={value}" for key, value in words.items())))
    done = import_features(*job.parts, partial)
    emit(done.as_dict(), done.text(), as_json)
