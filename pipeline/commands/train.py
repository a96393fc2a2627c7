"""The `train` command."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from pipeline.commands._shared import option_backend, stage2_command

if TYPE_CHECKING:
    from pipeline.jobs.experiment import Experiment

SECTION = "stage 2"


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
def command(experiment: Experiment, models: tuple[str, ...], seeds: tuple[int, ...] | None, **options: Any) -> None:
    """Fit memory models on the cached features. Finished runs are kept."""
    from pipeline.jobs.identities import asked_runs
    from pipeline.jobs.stage2 import TrainOptions, outcome_text, train

    for run, outcome in train(experiment, asked_runs(experiment.spec, models, seeds), TrainOptions(**options)):
        click.echo(outcome_text(run, outcome, options["diagnostics"]))
