"""The `fit-composer` command."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.commands._shared import emit, load, log, open_job, option_json, spec_command

SECTION = "stage 1"


@click.command("fit-composer", epilog="Example: fashion-ntm fit-composer mt_fashioniq-caption")
@spec_command
@option_json
def command(spec: str, overrides: tuple[str, ...], data: Path, out: Path, as_json: bool) -> None:
    """Train the composer of SPEC on cached embeddings and write its query and target features.

    With --set composer.folds=K the features of each train session come from a head fitted without that session
    (cross-fitting).
    """
    from pipeline.jobs.stage1 import fit_composer_spec

    job, workspace = open_job(spec, overrides, data, out)

    def tell(m: dict[str, float]) -> None:
        head = f"fold {m['fold']:.0f}, " if "fold" in m else ""
        log(f"{head}epoch {m['epoch']:.0f}: loss {m['loss']:.4f}")

    result = fit_composer_spec(job, load(job, data), workspace, tell)
    emit(result.as_dict(), result.text(), as_json)
