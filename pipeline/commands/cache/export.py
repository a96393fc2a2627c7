"""The `cache export` command."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.commands._shared import PATH, Job, emit, option_data, option_json, option_out, option_set

if TYPE_CHECKING:
    from pipeline.stores.exports import Format


@click.command(
    "export", epilog="Example: fashion-ntm cache export demo --format npy --to arrays --data out/demo --out out/demo"
)
@click.argument("target", metavar="STORE|SPEC")
@click.option("--to", "folder", type=PATH, required=True, help="Folder to write; new or empty.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["npy", "safetensors", "parquet", "faiss"]),
    default="npy",
    help="parquet and faiss need the extra of that name, such as fashion-ntm[parquet].",
)
@option_data
@option_out
@option_set
@option_json
def command(
    target: str, folder: Path, form: Format, out: Path, data: Path, overrides: tuple[str, ...], as_json: bool
) -> None:
    """Write the features of STORE, or of SPEC's store, as arrays for other tools.

    Writes one file of features and one of ids per table, in the same order, and features.json with the fingerprint.
    With a SPEC, queries and texts are identified by words, sessions and turns; with a STORE, by image ids and content
    keys. Parquet has an id column. Reads the store in blocks. `cache import` reads npy and safetensors folders back.
    """
    from cache import Store
    from pipeline.stores.exports import export
    from pipeline.stores.targets import is_spec, require_store

    if is_spec(target, out):
        job = Job(target, overrides, data, out)
        done = export(job.workspace.store(job.spec, job.dataset), folder, form, job.dataset)
    else:
        done = export(Store.open(require_store(target, out)), folder, form)
    emit(done.as_dict(), done.text(), as_json)
