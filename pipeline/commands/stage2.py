"""Stage 2 commands: run, train, evaluate, ablate, tune, history, rerank."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from manifests.commandline import folder_options
from pipeline.commands._options import EXISTING_FILE, choice, option_device, option_inputs, option_models, parse_numbers
from pipeline.commands._shared import Job, Printed, job_command, log, prints, sessions_command, show, stage2_command

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
@choice(
    "--backend",
    of=("auto", "reference", "fast", "numba", "graph", "triton"),
    help="How the CM-NTM's steps are computed; auto takes the first that can of triton, graph, numba, fast, reference.",
)
@click.option(
    "--threads", type=click.IntRange(min=1), help="CPU threads of a training step.  [default: OMP_NUM_THREADS, or 1]"
)
@click.option(
    "--side-by-side/--one-by-one", default=None, help="Train seeds at once, or in turn.  [default: at once on CUDA]"
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


@click.command("ablate", epilog="Example: fashion-ntm ablate table5 --dry-run --data DIR")
@click.argument("spec", metavar="SPEC")
@click.option("--spec", "run", default="", help="Run spec whose features are used. Default: the one that SPEC names.")
@click.option(
    "--only", callback=parse_numbers, metavar="NUMBERS", help="Numbers of grid points: 3 or 1,4 or 2..5. Default: all."
)
@click.option("--seeds", callback=parse_numbers, help="0..4 or 0,2,5. Default: those of SPEC.")
@click.option("--variant", "variants", multiple=True, metavar="LABEL", help="Dataset or composer of SPEC. Repeatable.")
@click.option("--dry-run", is_flag=True, help="Print what would be done and how long it takes; write nothing.")
@click.option("--scheduler", default="", metavar="ADDRESS", help="Dask scheduler that trains, e.g. tcp://host:8786.")
@click.option("--local-cluster", "workers", type=click.IntRange(1), help="Train in N local processes.")
@option_inputs
@option_device
@prints
def ablate(spec: str, run: str, variants: tuple[str, ...], dry_run: bool, data: Path, out: Path, **how: Any) -> Printed:
    """Train what is missing of ablation SPEC: a grid of options, times the seeds.

    Runs are matched by configuration, including those of `train` or of another ablation. Resumable: run the same
    command again to continue.
    """
    from pipeline.analysis.ablation.plan import plan_ablation
    from pipeline.analysis.ablation.run import ablate, open_ablation, variants_of
    from pipeline.analysis.render import to_text
    from pipeline.analysis.tables import TableRequest, table_of_ablation

    if how["scheduler"] and how["workers"]:
        raise click.UsageError("--scheduler and --local-cluster exclude each other: give one of them")
    study = open_ablation(spec, run, how["overrides"], data, out, how["device"])
    chosen, found, plans, tables = (how["only"] or (), how["seeds"] or ()), [], list[str](), list[str]()
    for part in variants_of(study, variants):
        plan = plan_ablation(part, *chosen) if dry_run else ablate(part, *chosen, how["scheduler"], how["workers"], log)
        found.append(plan.as_dict())
        plans.append(f"{plan.spec.name}\n{plan.text()}")
        if not dry_run:
            request = TableRequest(spec, data, out, run, how["overrides"], variant=part.variant)
            table = table_of_ablation(part.ablation, part.spec, request)
            found[-1]["table"] = table.model_dump()
            tables.append(to_text(table))
    if len(found) == 1:
        return found[0], "\n\n".join([plan.text(), *tables])
    return found, "\n\n".join([*plans, *tables])


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
@choice("--sampler", of=("random", "tpe"), help="tpe learns from the trials so far; it needs the extra [tune].")
@click.option(
    "--folds", type=click.IntRange(1), default=3, help="Pair-clean folds of train sessions; 1: the validation part."
)
@click.option("--trials", type=click.IntRange(1), default=20, help="Trials in all.")
@click.option("--minutes", type=click.FloatRange(0), help="Begin no trial after this time.")
@click.option("--seed", type=click.IntRange(0), default=0, help="Seed of the search and of its training runs.")
@option_device
@prints
def tune(job: Job, **search: Any) -> Printed:
    """Search the options of a memory model by cross-validation; write the best as a spec.

    Only train sessions are used. Resumable: trials are logged as they end, and the same command continues the search.
    """
    from pipeline.analysis.tuning.search import tune

    return tune(*job.parts, **search, device=job.device, log=log, options=folder_options(job.data, job.out))


@click.command("history", epilog="Example: fashion-ntm history demo")
@sessions_command
@click.option("--draws", type=click.IntRange(1), default=5, help="Draws of each random history.")
@choice(
    "--part",
    of=("test", "train"),
    help="Sessions to rank; train: those that models are fitted on, among their own targets.",
)
@option_device
@prints
def history(job: Job, draws: int, part: Literal["test", "train"]) -> Printed:
    """Measure how much earlier turns tell about the target: the possible gain of a memory.

    On SPEC's features, ranks sessions by the last turn, by moving averages over their own history and over another
    session's history (control), and by the best fixed weights of the turns; one of these is fitted on the loss of the
    test sessions.
    """
    from pipeline.analysis.history import history_contribution

    return history_contribution(job.experiment, part, draws)


@click.command("rerank", epilog="Example: fashion-ntm rerank mt_fashioniq-caption --model ewma --top 50")
@stage2_command
@click.option("--top", type=click.IntRange(1), default=50, help="Candidates to re-rank.")
@click.option(
    "--have", type=float, metavar="WEIGHT", help="Weight of what the feedback asks for. Default: chosen on validation."
)
@click.option(
    "--avoid", type=float, metavar="WEIGHT", help="Weight against the reference images. Default: chosen on validation."
)
@click.option(
    "--keep",
    type=click.FloatRange(0, 1, min_open=True),
    default=0.9,
    metavar="SHARE",
    help="Share of the validation targets that the relevance cut-off keeps.",
)
@prints
def rerank(experiment: Experiment, models: tuple[str, ...], seeds: tuple[int, ...] | None, **weights: Any) -> Printed:
    """Measure must-have / must-avoid re-ranking and a relevance cut-off; change no run."""
    from pipeline.analysis.rerank import reports_text, rerank_runs
    from pipeline.jobs.identities import asked_runs

    reports = rerank_runs(experiment, asked_runs(experiment.spec, models, seeds), **weights)
    return reports, reports_text(reports)
