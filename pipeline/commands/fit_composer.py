"""The `fit-composer` command."""

from __future__ import annotations

import click

from pipeline.commands._shared import Job, emit, job_command, log, option_json

SECTION = "stage 1"


@click.command("fit-composer", epilog="Example: fashion-ntm fit-composer mt_fashioniq-caption")
@job_command
@option_json
def command(job: Job, as_json: bool) -> None:
    """Train the composer of SPEC on cached embeddings and write its query and target features.

    With --set composer.folds=K the features of each train session come from a head fitted without that session
    (cross-fitting).
    """
    from pipeline.jobs.stage1 import fit_composer_spec

    def tell(m: dict[str, float]) -> None:
        head = f"fold {m['fold']:.0f}, " if "fold" in m else ""
        log(f"{head}epoch {m['epoch']:.0f}: loss {m['loss']:.4f}")

    result = fit_composer_spec(*job.parts, tell)
    emit(result.as_dict(), result.text(), as_json)
