"""Commands on a spec's memory models: run, train, evaluate."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.commands._shared import (
    EXISTING_FILE,
    Job,
    Printed,
    job_command,
    log,
    option_backend,
    option_device,
    option_models,
    prints,
    sessions_command,
    show,
    stage2_command,
)

if TYPE_CHECKING:
    from pipeline.jobs.experiment import Experiment

SECTION = "stage 2"


@click.command("run", epilog="Example: fashion-ntm run mt_fashioniq-caption --data DIR")
@sessions_command
@option_models
@option_device
def run(job: Job, models: tuple[str, ...], seeds: tuple[int, ...] | None) -> None:
    """Run both stages of SPEC in order: extract, fit-composer, train, evaluate. Finished work is kept."""
    from pipeline.jobs.run import run_spec
    from pipeline.jobs.specs import check_sessions

    check_sessions(job.spec, job.dataset, models)
    show(run_spec(*job.parts, job.device, log, models, seeds))


@click.command(
    "train", epilog="Example: fashion-ntm train demo --model cm_ntm --seeds 0..4 --out out/demo --data out/demo"
)
@stage2_command
@click.option("--force", is_flag=True, help="Train finished runs again.")
@option_backend
@click.option(
    "--threads", type=click.IntRange(min=1), help="CPU threads of a training step.  [default: OMP_NUM_THREADS, or 1]"
)
@click.option(
    "--side-by-side/--one-by-one",
    default=None,
    help="Train a model's seeds at once, or in turn.  [default: at once on CUDA]",
)
@click.option(
    "--diagnostics",
    is_flag=True,
    help="Write row spread, entropies and gradients of the memories per epoch, for `figure diagnostics`.",
)
@click.option(
    "--log",
    multiple=True,
    type=click.Choice(["tensorboard", "wandb", "trackio", "mlflow"]),
    help="Send the metrics of each epoch there too; needs the extra of that name. Repeatable.",
)
def train(experiment: Experiment, models: tuple[str, ...], seeds: tuple[int, ...] | None, **options: Any) -> None:
    """Fit memory models on the cached features. Finished runs are kept."""
    from pipeline.jobs.identities import asked_runs
    from pipeline.jobs.stage2 import TrainOptions, outcome_text, train

    for run, outcome in train(experiment, asked_runs(experiment.spec, models, seeds), TrainOptions(**options)):
        click.echo(outcome_text(run, outcome, options["diagnostics"]))


@click.command("evaluate", epilog="Example: fashion-ntm evaluate mt_fashioniq-caption --model lstm --json")
@job_command
@option_models
@option_device
@click.option(
    "--ranked",
    type=EXISTING_FILE,
    metavar="FILE",
    help="Score ranked lists of another system instead: TREC run, JSON lines, CIRR or CIRCO server file.",
)
@click.option("--name", help="Name of the ranked lists, for `table N --ranked NAME`. Default: the file's name.")
@click.option(
    "--against", metavar="RUN", help="Test the ranked lists against a run (id, first digits, or memory model)."
)
@click.option("--partial", is_flag=True, help="Leave out test sessions that have no ranked list.")
@click.option(
    "--trained-on",
    multiple=True,
    metavar="DATASET",
    help="Dataset that the other system was trained on; tables mark its row. Repeatable.",
)
@prints
def evaluate(
    job: Job, models: tuple[str, ...], seeds: tuple[int, ...] | None, ranked: Path | None, **of_ranked: Any
) -> Printed:
    """Rank the test sessions with the trained runs: recall and MRR by category and subset.

    With --ranked, score the ranked lists of another system on the same sessions, galleries and leak subsets. A target
    that its list does not name has the last rank.
    """
    from pipeline.analysis.compare import compare_list, to_text
    from pipeline.jobs.identities import asked_runs
    from pipeline.jobs.ranked import score_list
    from pipeline.jobs.specs import require_sessions
    from pipeline.jobs.stage2 import evaluate, summary_text

    alone = [name.replace("_", "-") for name, value in of_ranked.items() if value]
    if ranked is None and alone:
        raise click.UsageError(f"--{alone[0]} is an option of --ranked FILE")
    if ranked is not None and (models or seeds):
        raise click.UsageError("--ranked FILE scores a file: --model and --seeds name trained runs")
    asked_runs(job.spec, models)  # an unknown model is named before anything is read
    require_sessions(job.spec, job.dataset)
    if ranked is None:
        experiment = job.experiment
        summaries = evaluate(experiment, experiment.current_runs(models, seeds))
        return summaries, summary_text(summaries)
    called, against = of_ranked.pop("name") or ranked.name.split(".")[0], of_ranked.pop("against")
    evaluation, summary, unnamed = score_list(ranked, called, job.dataset, job.workspace, **of_ranked)
    if unnamed:
        log(f"note: {unnamed:,} lists do not name their target: it has the last rank, so MRR is a lower bound")
    text = summary_text([summary])
    if against:
        found = compare_list(called, evaluation, against, job.data, job.out)
        summary, text = {**summary, "against": found.as_dict()}, f"{text}\n\n{to_text(found)}"
    return summary, text
