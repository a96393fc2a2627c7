"""The `evaluate` command."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.commands._shared import (
    EXISTING_FILE,
    Job,
    emit,
    job_command,
    log,
    option_device,
    option_json,
    option_models,
)

SECTION = "stage 2"


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
@option_json
def command(
    job: Job,
    models: tuple[str, ...],
    seeds: tuple[int, ...] | None,
    ranked: Path | None,
    name: str | None,
    against: str | None,
    partial: bool,
    trained_on: tuple[str, ...],
    as_json: bool,
) -> None:
    """Rank the test sessions with the trained runs: recall and MRR by category and subset.

    With --ranked, score the ranked lists of another system on the same sessions, galleries and leak subsets. A target
    that its list does not name has the last rank.
    """
    from pipeline.analysis.compare import compare_list, to_text
    from pipeline.jobs.identities import asked_runs
    from pipeline.jobs.ranked import score_list
    from pipeline.jobs.specs import require_sessions
    from pipeline.jobs.stage2 import evaluate, summary_text

    alone = {"--name": name, "--against": against, "--partial": partial, "--trained-on": trained_on}
    if ranked is None and any(alone.values()):
        raise click.UsageError(f"{next(k for k, v in alone.items() if v)} is an option of --ranked FILE")
    if ranked is not None and (models or seeds):
        raise click.UsageError("--ranked FILE scores a file: --model and --seeds name trained runs")
    asked_runs(job.spec, models)  # an unknown model is named before anything is read
    require_sessions(job.spec, job.dataset)
    if ranked is None:
        experiment = job.experiment
        summaries = evaluate(experiment, experiment.current_runs(models, seeds))
        emit(summaries, summary_text(summaries), as_json)
        return
    called = name or ranked.name.split(".")[0]
    evaluation, summary, unnamed = score_list(ranked, called, job.dataset, job.workspace, partial, trained_on)
    if unnamed:
        log(f"note: {unnamed:,} lists do not name their target: it has the last rank, so MRR is a lower bound")
    text = summary_text([summary])
    if against:
        found = compare_list(called, evaluation, against, job.data, job.out)
        summary, text = {**summary, "against": found.as_dict()}, f"{text}\n\n{to_text(found)}"
    emit(summary, text, as_json)
