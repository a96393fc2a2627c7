"""Commands on runs and their rankings: compare, results, score, status, the group `runs`, export, push, pull."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.commands._options import EXISTING_FILE, FOLDER, PATH, choice, option_folders, option_out
from pipeline.commands._shared import Job, Printed, job_command, log, prints, show, stage2_command

if TYPE_CHECKING:
    from pipeline.jobs.experiment import Experiment

SECTION = "results"


@click.command("compare", epilog="Example: fashion-ntm compare ewma cm_ntm --data DIR")
@click.argument("a", metavar="RUN_A")
@click.argument("b", metavar="RUN_B")
@click.option("--top", type=click.IntRange(0), default=10, help="Sessions shown at each end.")
@click.option("--view", default="", help="A view of an ablation, such as turns4-last2. Default: all sessions, whole.")
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
@choice("--format", "form", of=("trec", "jsonl", "cirr", "circo", "beir"))
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


@click.group("runs", epilog="Example: fashion-ntm runs show 3f2a --out out/demo")
def runs() -> None:
    """Show, compare and remove runs; `ls runs` lists them."""


@runs.command("show", epilog="Example: fashion-ntm runs show 3f2a --out out/demo")
@click.argument("given", metavar="RUN")
@option_folders
@prints
def show_command(**asked: Any) -> Printed:
    """Show everything that RUN records: options, training, scores, data, files. RUN is an id or its first digits."""
    from pipeline.jobs.managed_runs import show_run, show_text

    found = show_run(**asked)
    return found, show_text(found)


@runs.command("compare", epilog="Example: fashion-ntm runs compare 3f2a 81b0 --out out/demo")
@click.argument("runs", metavar="RUN RUN...", nargs=-1, required=True)
@option_folders
@prints
def side_by_side_command(runs: tuple[str, ...], data: Path, out: Path) -> Printed:
    """Print runs side by side: the settings that differ, and their scores. `compare` tests two for significance."""
    from pipeline.jobs.managed_runs import compare_text, side_by_side

    if len(runs) < 2:
        raise click.UsageError("name two runs or more")
    found = side_by_side(runs, data, out)
    return found, compare_text(found)


@runs.command("rm", epilog="Example: fashion-ntm runs rm --where current='of other data' --dry-run --out out/demo")
@click.argument("runs", metavar="[RUN]...", nargs=-1)
@click.option(
    "--where", multiple=True, metavar="KEY=VALUE", help="All runs with this value, as in `ls runs`. Repeatable."
)
@click.option("--dry-run", is_flag=True, help="Print what would be removed, and how many bytes; remove nothing.")
@option_folders
@prints
def rm(runs: tuple[str, ...], where: tuple[str, ...], dry_run: bool, data: Path, out: Path) -> Printed:
    """Remove runs with their weights and results. A run that is being trained is refused; stores are not touched."""
    from pipeline.jobs.managed_runs import remove_runs, removed_text

    if bool(runs) == bool(where):
        raise click.UsageError("name the runs, or choose them with --where")
    found = remove_runs(runs, where, data, out, dry_run)
    return found, removed_text(found)


@click.command(
    "export", epilog="Example: fashion-ntm export 3f2a --format onnx --to model --data out/demo --out out/demo"
)
@click.argument("given", metavar="RUN")
@click.option("--to", type=PATH, required=True, help="Folder to write; new or empty.")
@choice("--format", "form", of=("torch", "onnx"), help="torch: torch.export files (.pt2); onnx needs the extra [onnx].")
@click.option("--turns", type=click.IntRange(1, 64), default=8, help="Longest session of the graph.")
@option_folders
@prints
def export(**asked: Any) -> Printed:
    """Export RUN's memory model and composer as torch or ONNX graphs.

    The graphs have a dynamic batch and are checked against PyTorch. RUN is an id, its first digits or a run's folder.
    export.json describes the inputs and outputs. `cache export` writes the features.
    """
    from pipeline.export.run import export_named

    return export_named(**asked, log=log)


@click.command("push", epilog="Example: fashion-ntm push 3f2a --to user/name --out out/demo")
@click.argument("run", metavar="RUN")
@click.option("--to", required=True, metavar="USER/NAME", help="Model on the Hugging Face hub; created if absent.")
@click.option("--private", is_flag=True, help="Create the model as private; refused for a public one.")
@option_out
def push(run: str, to: str, private: bool, out: Path) -> None:
    """Upload RUN with its weights, results and model card to the Hugging Face hub. Log in first: `hf auth login`.

    Local paths in its spec are published as their last part.
    """
    from pipeline.export.hub import push_run
    from pipeline.jobs.managed_runs import run_named

    show(push_run(run_named(run, out / "runs"), to, private, log))


@click.command("pull", epilog="Example: fashion-ntm pull user/name --out out/demo")
@click.argument("name", metavar="USER/NAME")
@click.option("--revision", help="Branch, tag or commit. Default: the newest.")
@option_out
def pull(name: str, revision: str | None, out: Path) -> None:
    """Download a run that `push` uploaded, and check its seal."""
    from pipeline.export.hub import pull_run

    show(str(pull_run(name, out / "runs", revision).path))
