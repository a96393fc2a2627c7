#!/usr/bin/env python3
"""The command line: parse, call, render. Heavy imports stay inside the commands, so that --help is instant."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from manifests.schema import Dataset, RunSpec
    from pipeline.workspace import Workspace

F = TypeVar("F", bound=Callable[..., Any])
INTERRUPTED = 130


class Commands(click.Group):
    """Turns the project's errors into one clear message and the right exit code (see the epilog of --help)."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            click.echo("interrupted: what was finished is kept; run the same command to resume", err=True)
            ctx.exit(INTERRUPTED)
        except Exception as error:
            code = getattr(error, "exit_code", None)
            if isinstance(error, click.ClickException | click.exceptions.Exit) or code is None:
                raise
            click.echo(str(error) if code == INTERRUPTED else f"error: {error}", err=True)
            ctx.exit(code)


def option_out(f: F) -> F:
    return click.option(
        "--out", type=click.Path(path_type=Path), default=Path("out"), show_default=True, envvar="FASHION_NTM_OUT",
        help="Folder for stores and runs.",
    )(f)  # fmt: skip


def option_data(f: F) -> F:
    return click.option(
        "--data", type=click.Path(path_type=Path), default=Path("data"), show_default=True, envvar="FASHION_NTM_DATA",
        help="Folder that holds the data sets (mt_fashioniq/, shoes/, blip2_captions/, ...).",
    )(f)  # fmt: skip


def option_json(f: F) -> F:
    return click.option("--json", "as_json", is_flag=True, help="Print JSON to stdout.")(f)


def option_set(f: F) -> F:
    return click.option(
        "--set", "overrides", multiple=True, metavar="KEY=VALUE",
        help="Override a key of the spec, e.g. extractor.model=DIR or training.epochs=20. Repeatable.",
    )(f)  # fmt: skip


def option_device(f: F) -> F:
    return click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1 or mps.")(f)


def spec_command(f: F) -> F:
    """SPEC, --set, --data and --out: what every command on a spec takes."""
    argument = click.argument("spec", metavar="SPEC")
    return argument(option_set(option_data(option_out(f))))


def _job(spec: str, overrides: tuple[str, ...], data: Path, out: Path) -> tuple[RunSpec, Workspace]:
    """The checked spec and its workspace; printed commands repeat the options that this call was given."""
    from manifests.load import load_spec
    from pipeline.specs import check_components
    from pipeline.workspace import Workspace

    loaded = load_spec(spec, overrides, shlex.join([spec, *_options(overrides, data, out)]))
    check_components(loaded)
    return loaded, Workspace(out)


def _options(overrides: tuple[str, ...], data: Path, out: Path) -> list[str]:
    """The options of this call that differ from the defaults, for a command that can be pasted."""
    words = [word for override in overrides for word in ("--set", override)]
    words += ["--data", str(data)] if data != Path("data") else []
    return words + (["--out", str(out)] if out != Path("out") else [])


def _load(spec: RunSpec, data: Path) -> Dataset:
    from manifests.load import load_dataset

    dataset = load_dataset(spec, data)
    for note in dataset.notes:
        log(f"note: {note}")
    return dataset


def log(text: str) -> None:
    click.echo(text, err=True)


def emit(value: Any, text: str, as_json: bool) -> None:
    """Data goes to stdout: the text, or the same as JSON."""
    click.echo(json.dumps(value, indent=2, default=str) if as_json else text)


def parse_seeds(_: click.Context, __: click.Parameter, value: str | None) -> tuple[int, ...] | None:
    """``0..4`` or ``0,2,5``; None when not given."""
    if value is None:
        return None
    try:
        if ".." in value:
            first, last = (int(v) for v in value.split(".."))
            seeds = tuple(range(first, last + 1))
        else:
            seeds = tuple(int(v) for v in value.split(","))
    except ValueError:
        seeds = ()
    if not seeds or min(seeds) < 0:
        raise click.BadParameter(f"{value!r} is not a list of seeds: write 0..4 or 0,2,5")
    return seeds


def option_models(f: F) -> F:
    f = click.option("--model", "models", multiple=True, help="Memory model; repeatable. Default: all of the spec.")(f)
    return click.option("--seeds", callback=parse_seeds, help="0..4 or 0,2,5. Default: the spec's seeds.")(f)


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="SPEC is the name of a shipped spec (see `ls specs`) or a path to a .toml file. "
    "Exit codes: 0 ok, 1 failure, 2 usage, 3 stale or incomplete, 4 invalid manifest, 130 interrupted.",
)
@click.version_option(package_name="fashion-ntm", message="%(version)s")
def main() -> None:
    """FashionNTM: multi-turn fashion image retrieval on cached features.

    Stage 1 (extract, fit-composer) runs a frozen single-turn model once and caches its features. Stage 2 (train,
    evaluate, table) fits memory models on the cache alone. Start with `demo`.
    """


@main.command(epilog="Example: fashion-ntm demo --out out/demo")
@click.option("--out", type=click.Path(path_type=Path), default=Path("out/demo"), show_default=True,
              help="Folder for images, store and runs.")  # fmt: skip
@click.option("--rebuild-model", is_flag=True, help="Train the demo's single-turn model and composer from nothing "
              "into OUT/model, and compare its score with the shipped one (minutes).")  # fmt: skip
@option_device
def demo(out: Path, rebuild_model: bool, device: str) -> None:
    """Run both stages on the embedded demo, to a table. Needs no network, no GPU and under two minutes."""
    from pipeline.demo import run

    if rebuild_model:
        click.echo(run.rebuild(out, log))
    else:
        click.echo(run.demo(out, device, log))


@main.command(epilog="Example: fashion-ntm extract mt_fashioniq-caption --set extractor.model=DIR")
@spec_command
@option_device
@click.option("--batch-size", type=click.IntRange(1), default=64, show_default=True, help="Items per forward pass.")
@click.option("--workers", type=click.IntRange(0), default=2, show_default=True, help="Decoding threads.")
@click.option("--max-failures", type=click.IntRange(0), help="Stop once more items than this have failed.")
@click.option("--retry-failed", is_flag=True, help="Try again what is recorded as failed.")
@option_json
def extract(
    spec: str, overrides: tuple[str, ...], data: Path, out: Path, device: str, as_json: bool, **how: Any
) -> None:
    """Stage 1: cache the features of every image, feedback text and query of SPEC.

    Resumable: run the same command again and only what is missing is computed.
    """
    from pipeline.stage1 import extract_spec

    job, workspace = _job(spec, overrides, data, out)
    result = extract_spec(job, _load(job, data), workspace, device, **how)
    emit(result.as_dict(), result.text(), as_json)


@main.command("fit-composer", epilog="Example: fashion-ntm fit-composer mt_fashioniq-caption")
@spec_command
@option_json
def fit_composer(spec: str, overrides: tuple[str, ...], data: Path, out: Path, as_json: bool) -> None:
    """Stage 1: train the composer of SPEC on cached embeddings and write its query and target features."""
    from pipeline.stage1 import fit_composer_spec

    job, workspace = _job(spec, overrides, data, out)
    result = fit_composer_spec(
        job, _load(job, data), workspace, lambda m: log(f"epoch {m['epoch']:.0f}: loss {m['loss']:.4f}")
    )
    emit(result.as_dict(), result.text(), as_json)


@main.command(epilog="Example: fashion-ntm train demo --model cm_ntm --seeds 0..4 --out out/demo --data out/demo")
@spec_command
@option_models
@option_device
@click.option("--force", is_flag=True, help="Train again what is already trained.")
def train(spec: str, overrides: tuple[str, ...], data: Path, out: Path, models: tuple[str, ...],
          seeds: tuple[int, ...] | None, device: str, force: bool) -> None:  # fmt: skip
    """Stage 2: fit memory models on the cached features. Finished runs are kept."""
    from pipeline.stage2 import train_spec

    job, workspace = _job(spec, overrides, data, out)
    for run in train_spec(job, _load(job, data), workspace, models, seeds, device, force, log):
        click.echo(run)


@main.command(epilog="Example: fashion-ntm evaluate mt_fashioniq-caption --model lstm --json")
@spec_command
@option_models
@option_device
@option_json
def evaluate(spec: str, overrides: tuple[str, ...], data: Path, out: Path, models: tuple[str, ...],
             seeds: tuple[int, ...] | None, device: str, as_json: bool) -> None:  # fmt: skip
    """Stage 2: rank every test session with the trained runs; R@1/5/8/10/50 and MRR by category and leak subset."""
    from pipeline.stage2 import evaluate_spec, summary_text

    job, workspace = _job(spec, overrides, data, out)
    summaries = evaluate_spec(job, _load(job, data), workspace, models, seeds, device, log)
    emit(summaries, summary_text(summaries), as_json)


@main.command(epilog="Example: fashion-ntm run mt_fashioniq-caption --data DIR")
@spec_command
@option_models
@option_device
def run(spec: str, overrides: tuple[str, ...], data: Path, out: Path, models: tuple[str, ...],
        seeds: tuple[int, ...] | None, device: str) -> None:  # fmt: skip
    """Both stages of SPEC in order: extract, fit-composer, train, evaluate. Everything already done is kept."""
    from pipeline.jobs import run_spec

    job, workspace = _job(spec, overrides, data, out)
    click.echo(run_spec(job, _load(job, data), workspace, models, seeds, device, log))


@main.command(epilog="Example: fashion-ntm table 1 --data DIR --format latex")
@click.argument("name", metavar="N")
@click.option("--spec", help="Run spec that fills the table. Default: the one that the table names.")
@click.option("--format", "form", type=click.Choice(["md", "latex", "csv", "json"]), default="md", show_default=True)
@option_set
@option_data
@option_out
def table(name: str, spec: str | None, form: str, overrides: tuple[str, ...], data: Path, out: Path) -> None:
    """Print table N of the paper: measured values, the paper's, and for an empty cell the command that fills it."""
    from pipeline.stage2 import paper_table

    click.echo(paper_table(name, spec, form, overrides, data, out, _options(overrides, data, out)), nl=False)


@main.command(epilog="Example: fashion-ntm plan mt_fashioniq-caption --json")
@spec_command
@option_device
@option_json
def plan(spec: str, overrides: tuple[str, ...], data: Path, out: Path, device: str, as_json: bool) -> None:
    """What `extract` would do and why: rows to do, done and failed by table, bytes to write. Writes nothing."""
    from pipeline.stage1 import plan_spec

    job, workspace = _job(spec, overrides, data, out)
    result = plan_spec(job, _load(job, data), workspace, device)
    emit(result.as_dict(), result.text(), as_json)


@main.command(epilog="Example: fashion-ntm status demo --data out/demo --out out/demo")
@spec_command
@option_json
def status(spec: str, overrides: tuple[str, ...], data: Path, out: Path, as_json: bool) -> None:
    """How far SPEC is: rows, composer, runs by model and seed. Exit code 3 while something is missing."""
    from pipeline.jobs import status_of

    job, workspace = _job(spec, overrides, data, out)
    result = status_of(job, _load(job, data), workspace)
    emit(result.as_dict(), result.text(), as_json)
    sys.exit(0 if result.complete else 3)


@main.command(epilog="Example: fashion-ntm validate my-run.toml")
@spec_command
@option_json
def validate(spec: str, overrides: tuple[str, ...], data: Path, out: Path, as_json: bool) -> None:
    """Check SPEC and its dataset; every problem is named with file, place and fix (exit code 4)."""
    from pipeline.jobs import describe

    job, _ = _job(spec, overrides, data, out)
    result = describe(job, _load(job, data))
    emit(result.as_dict(), result.text(), as_json)


KINDS = ["specs", "tables", "datasets", "extractors", "composers", "models", "stores", "runs"]


@main.command("ls", epilog="Example: fashion-ntm ls models --long")
@click.argument("kind", type=click.Choice(KINDS), required=False)
@click.option("--long", "-l", "detail", is_flag=True, help="Options, licences and sizes too.")
@option_out
@option_json
def list_(kind: str | None, detail: bool, out: Path, as_json: bool) -> None:
    """List what there is: specs, tables, datasets, extractors, composers, models, and the stores and runs in OUT."""
    from pipeline.listing import listing

    found = listing([kind] if kind else KINDS, out, detail)
    emit(found.as_dict(), found.text(), as_json)


@main.command(epilog="Example: fashion-ntm doctor --json")
@option_out
@option_data
@option_json
def doctor(out: Path, data: Path, as_json: bool) -> None:
    """Check this machine: Python, packages, device, threads, disk, folders. Exit code 1 when something is broken."""
    from pipeline.doctor import examine

    result = examine(out, data)
    emit(result.as_dict(), result.text(), as_json)
    sys.exit(0 if result.healthy else 1)


@main.command(epilog="Example: fashion-ntm download mt_fashioniq --data data")
@click.argument("name", metavar="DATASET")
@option_data
@click.option("--from", "source", help="Local folder or base URL to copy from instead of the public address.")
def download(name: str, data: Path, source: str | None) -> None:
    """Fetch the public annotation files of DATASET (mt_fashioniq, shoes, blip2_captions) and check their SHA-256."""
    from manifests.downloads import download as fetch

    done = fetch(name, data, source, progress=log)
    for note in done.notes:
        log(f"note: {note}")
    click.echo(f"{len(done.fetched)} files fetched into {data}, {len(done.skipped)} were there and verified")


@main.command(epilog="Example: fashion-ntm bench train --json bench.json")
@click.argument("name", metavar="NAME")
@click.option("--json", "file", type=click.Path(path_type=Path), help="Also write every figure printed to FILE.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a size of the benchmark.")
def bench(name: str, file: Path | None, overrides: tuple[str, ...]) -> None:
    """Measure this machine with benchmark NAME (see `bench list`). Figures are medians, taken side by side."""
    from pipeline.bench import run_bench

    click.echo(run_bench(name, file, overrides))


if __name__ == "__main__":
    main()
