"""Commands on rankings: compare, results, score; and the status of a spec."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.commands._shared import (
    EXISTING_FILE,
    FOLDER,
    Job,
    Printed,
    job_command,
    option_folders,
    prints,
    stage2_command,
)

if TYPE_CHECKING:
    from pipeline.jobs.experiment import Experiment

SECTION = "results"


@click.command("compare", epilog="Example: fashion-ntm compare ewma cm_ntm --data DIR")
@click.argument("a", metavar="RUN_A")
@click.argument("b", metavar="RUN_B")
@click.option("--top", type=click.IntRange(0), default=10, help="Sessions shown at each end.")
@click.option(
    "--view",
    default="",
    show_default=False,
    help="A view of an ablation, such as turns4-last2. Default: all sessions, whole.",
)
@option_folders
@prints
def compare(**asked: Any) -> Printed:
    """Compare the rankings of RUN_A and RUN_B, with significance tests.

    Lists the test sessions that differ most. A run is named by its id or its first digits. To compare over several
    seeds, give comma-separated ids or the name of a memory model. `ls runs` lists the runs.
    """
    from pipeline.analysis.compare import compare_runs, to_text

    found = compare_runs(**asked)
    return found.as_dict(), to_text(found)


@click.command("results", epilog="Example: fashion-ntm results demo --model lstm --format trec --to lists")
@stage2_command
@click.option("--format", "form", type=click.Choice(["trec", "jsonl", "cirr", "circo", "beir"]), default="trec")
@click.option("--to", type=FOLDER, required=True, help="Output folder.")
@click.option(
    "--top", type=click.IntRange(1), default=1000, metavar="K", help="Candidates per session; server formats take 50."
)
@prints
def results(experiment: Experiment, form: str, to: Path, top: int, **asked: Any) -> Printed:
    """Write the ranked test sessions of trained runs for other tools.

    trec: a run and its qrels. jsonl: one session per line. cirr, circo: the files of their servers. beir: corpus,
    queries, qrels, their features and the run, by category. `evaluate --ranked` reads all of them back. Several runs
    get a folder each.
    """
    from pipeline.jobs.ranked import write_results

    runs = experiment.finished(experiment.current_runs(**asked))
    made = {}
    for run in runs:
        name = f"{run.asked}-{run.seed}"
        made[name] = [str(f) for f in write_results(experiment, run, form, to if len(runs) == 1 else to / name, top)]
    return made, "\n".join(f"{name}  {file}" for name, files in made.items() for file in files)


@click.command("score", epilog="Example: fashion-ntm score circo.json --annotations circo/val.json")
@click.argument("ranked", metavar="RANKED", type=EXISTING_FILE)
@click.option("--annotations", required=True, type=EXISTING_FILE, help="cap.rc2.val.json of CIRR or val.json of CIRCO.")
@prints
def score(ranked: Path, annotations: Path) -> Printed:
    """Score ranked lists on CIRR or CIRCO with the benchmark's annotation file.

    Prints R@K and R_subset@K for CIRR, mAP@K for CIRCO. RANKED: a server file, TREC run or JSON lines, whose session
    ids are the benchmark's query ids.
    """
    from pipeline.evaluation.cir_benchmarks import score_benchmark

    return score_benchmark(ranked, annotations)


@click.command("status", epilog="Example: fashion-ntm status demo --data out/demo --out out/demo")
@job_command
@prints
def status(job: Job) -> Printed:
    """Show the progress of SPEC: rows, composer, runs by model and seed. Exit code 3 while something is missing."""
    from pipeline.jobs.run import status_of

    result = status_of(*job.parts)
    return result.as_dict(), result.text(), 0 if result.complete else 3
