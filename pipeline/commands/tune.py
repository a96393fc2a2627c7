"""The `tune` command."""

from __future__ import annotations

import click

from manifests.commandline import folder_options
from pipeline.commands._shared import Job, emit, log, option_device, option_json, sessions_command

SECTION = "stage 2"


@click.command("tune", epilog="Example: fashion-ntm tune mt_fashioniq-caption --model lstm --trials 30 --data DIR")
@sessions_command
@click.option("--model", required=True, help="Memory model whose options are searched.")
@click.option(
    "--search",
    multiple=True,
    metavar="KEY=VALUES",
    help="hidden=50,100 or dropout=0..0.5 or training.learning_rate=1e-4..1e-2:log. Repeatable. Default: the options "
    "of the model that usually matter.",
)
@click.option(
    "--sampler",
    type=click.Choice(["random", "tpe"]),
    default="random",
    help="tpe learns from the trials so far; it needs the extra [tune].",
)
@click.option(
    "--folds",
    type=click.IntRange(1),
    default=3,
    help="Pair-clean folds of the train sessions; 1: the spec's validation part.",
)
@click.option("--trials", type=click.IntRange(1), default=20, help="Trials in all.")
@click.option("--minutes", type=click.FloatRange(0), help="Begin no trial after this time.")
@click.option("--seed", type=click.IntRange(0), default=0, help="Seed of the search and of its training runs.")
@option_device
@option_json
def command(
    job: Job,
    model: str,
    search: tuple[str, ...],
    sampler: str,
    folds: int,
    trials: int,
    minutes: float | None,
    seed: int,
    as_json: bool,
) -> None:
    """Search the options of a memory model by cross-validation; write the best as a spec.

    Only train sessions are used. Resumable: trials are logged as they end, and the same command continues the search.
    """
    from pipeline.analysis.tuning.search import Budget, tune

    budget, words = Budget(trials, minutes), folder_options(job.data, job.out)
    found = tune(*job.parts, model, search, sampler, folds, budget, seed, job.device, log, words)
    emit(found.as_dict(), found.text(), as_json)
