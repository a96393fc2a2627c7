"""The `cache gc` command."""

from __future__ import annotations

from dataclasses import replace

import click

from pipeline.commands._shared import Job, emit
from pipeline.commands.cache._stores import open_request, target_command


@click.command(
    "gc", epilog="Example: fashion-ntm cache gc mt_fashioniq-clip --keep-for mt_fashioniq-subset.toml --dry-run"
)
@target_command
@click.option(
    "--keep-for", "others", multiple=True, metavar="SPEC", help="Also keep the rows that this spec needs. Repeatable."
)
@click.option("--alone", is_flag=True, help="Go ahead although another spec was extracted into the same store.")
@click.option(
    "--superseded",
    is_flag=True,
    help="Also remove the stores of SPEC's dataset that no spec's last extraction names: of earlier models or options.",
)
@click.option(
    "--dry-run", is_flag=True, help="Print what would be removed, and how many bytes; remove nothing, take no lock."
)
def command(job: Job, as_json: bool, others: tuple[str, ...], alone: bool, superseded: bool, dry_run: bool) -> None:
    """Drop rows that SPEC's dataset no longer references, and leftover files.

    With a SPEC: from all of its stores. With a STORE: the rows that no --keep-for spec needs; without --keep-for, only
    leftover files (temporary files, shards set aside, files of no manifest). The rows to keep are written to a new
    shard before the old one is deleted, so a kill at any moment loses no row. Rows of an image that cannot be read now
    are kept. Stop all readers of the store first: reading a deleted shard raises an error. --set applies to SPEC, not
    to --keep-for.
    """
    from pipeline.core.leftovers import leftovers_text, remove_leftovers
    from pipeline.stores.collect import collect_specs, collect_store, remove_superseded, superseded_text
    from pipeline.stores.targets import is_spec, require_store

    kept = [replace(job, given=spec, overrides=()) for spec in others]
    if is_spec(job.given, job.out):
        requests = [open_request(one) for one in (job, *kept)]
        results = collect_specs(requests, dry_run=dry_run, alone=alone)
    else:
        requests = [open_request(one) for one in kept]
        results = [collect_store(require_store(job.given, job.out), requests, dry_run=dry_run, alone=alone)]
    found, lines = [result.as_dict() for result in results], [result.text() for result in results]
    if superseded:
        if not is_spec(job.given, job.out):
            raise click.UsageError("--superseded needs a SPEC, whose dataset is meant")
        request = requests[0]
        removed = remove_superseded(request.workspace, request.dataset.name, dry_run=dry_run)
        found += [{"superseded": store, "dry_run": dry_run} for store in removed]
        lines.append(superseded_text(removed, dry_run))
    if leftovers := remove_leftovers(job.out, dry_run=dry_run):
        found.append({"leftovers": leftovers, "dry_run": dry_run})
        lines.append(leftovers_text(leftovers, dry_run))
    emit(found, "\n".join(lines), as_json)
