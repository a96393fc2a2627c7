"""The `cache kill` command."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.commands._shared import emit, option_json


@click.command("kill", epilog="Example: fashion-ntm cache kill --n 200 --seed 1")
@click.option("--n", "count", type=click.IntRange(1), default=50, show_default=True, help="Writers to kill.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the moments at which they are killed.")
@click.option(
    "--folder",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="Where the test stores lie meanwhile.",
)
@option_json
def command(count: int, seed: int, folder: Path | None, as_json: bool) -> None:
    """Stress-test the store on this machine and disk: SIGKILL writers at chosen steps and random moments.

    Uses temporary stores only. Exit code 1 when a row was lost or wrong, or a store was unreadable or differs at the end.
    """
    from pipeline.bench._kill import kill_writers

    score = kill_writers(count, seed, folder, lambda line: click.echo(f"\r{line}", err=True, nl=False))
    click.echo("", err=True)
    emit(score.as_dict(), score.text(), as_json)
    if not score.passed:
        raise SystemExit(1)
