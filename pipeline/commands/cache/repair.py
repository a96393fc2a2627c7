"""The `cache repair` command."""

from __future__ import annotations

import sys

import click

from pipeline.commands._shared import Job, emit
from pipeline.commands.cache._stores import target_command


@click.command("repair", epilog="Example: fashion-ntm cache repair mt_fashioniq-clip --data data --out out")
@target_command
def command(job: Job, as_json: bool) -> None:
    """Remove damaged parts of STORE, or of the stores of SPEC, and recompute only those.

    A damaged shard is set aside (never deleted), and the rows of a damaged or missing shard become missing. A renamed or
    swapped shard gets its name back. NaN rows and repeated keys are removed. A lost manifest is rebuilt from the shards
    that the ledger confirms. With a SPEC, the missing rows are then extracted; with a STORE, the command for this is
    printed. Valid rows are never changed. Exit code 3 while rows are still to be extracted, 1 when damage remains.
    """
    from pipeline.stores.targets import is_spec, require_store

    if is_spec(job.given, job.out):
        from pipeline.stores.repair import repair_spec

        done = repair_spec(*job.parts, job.device)
        emit(done.as_dict(), done.text(), as_json)
        sys.exit(0 if done.whole else 1)
    from cache.repair import repair
    from pipeline.stores.repair import filling_command

    path = require_store(job.given, job.out)
    one = repair(path)
    text, values = one.text(), one.as_dict()
    if one.rows_lost or one.actions:
        values["next"] = filling_command(job.workspace, path, job.data)
        text += f"\nnext: {values['next']}"
    emit(values, text, as_json)
    sys.exit(1 if one.left else 3 if one.rows_lost else 0)
