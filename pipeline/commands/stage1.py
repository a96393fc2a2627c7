"""Stage 1 commands: extract, plan, index, fit-composer, fit-extractor, check-extractor."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.commands._options import FOLDER, choice, option_device
from pipeline.commands._shared import Job, Printed, job_command, load, log, prints

if TYPE_CHECKING:
    from pipeline.extraction.fitting.loop import Progress

SECTION = "stage 1"
HEARTBEAT = 15.0  # seconds between lines; the first steps are reported immediately
METRIC_NAMES = ("R@10", "R@50", "mean")


class BatchSize(click.ParamType):
    """A positive number, or "auto"."""

    name = "N|auto"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "auto" or (str(value).isdigit() and int(value) > 0):
            return value if value == "auto" else int(value)
        self.fail(f"{value!r} is neither a number of items from 1 up nor 'auto'", param, ctx)


class Count(click.ParamType):
    """A positive number, also as 1e8."""

    name = "N"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        with suppress(ValueError, OverflowError):
            if (count := float(value)) >= 1 and count.is_integer():
                return int(value) if str(value).isdigit() else int(count)
        self.fail(f"{value!r} is no number of items such as 10000000 or 1e7", param, ctx)


option_precision = click.option(
    "--precision",
    type=click.Choice(["fp32", "bf16", "fp16", "auto"]),
    help="Number format of the model's computation, part of the store's fingerprint; auto is bf16 where the "
    "device has units for it. Default: the spec's extractor.dtype.",
)


@click.command("extract", epilog="Example: fashion-ntm extract mt_fashioniq-caption --set extractor.model=DIR")
@job_command
@option_device
@click.option(
    "--batch-size", type=BatchSize(), default="auto", help="Items per batch; auto measures it; a resumed job keeps it."
)
@option_precision
@choice(
    "--form",
    of=("plain", "channels-last", "compiled"),
    help="How the image tower runs; the features agree up to rounding. Compiling takes about a minute.",
)
@click.option(
    "--workers", type=click.IntRange(0), help="Decoding processes. Default: the CPUs that the model leaves free."
)
@click.option("--shard-rows", type=click.IntRange(1), default=4096, help="Rows per commit.")
@click.option(
    "--scheduler", metavar="ADDRESS", help="Compute on the Dask cluster at tcp://host:port (docs/cluster.md)."
)
@click.option(
    "--local-cluster", type=click.IntRange(1), help="Compute in N processes of this machine, one per GPU if it has any."
)
@click.option("--max-failures", type=click.IntRange(0), help="Stop once more items than this have failed.")
@click.option("--retry-failed", is_flag=True, help="Try the items again that are recorded as failed.")
@prints
def extract(job: Job, **how: Any) -> Printed:
    """Cache the features of every image, feedback text and query of SPEC.

    Resumable: run the same command again, and only missing rows are computed. Exits with 3 if files could not be read.
    """
    from pipeline.jobs.stage1 import extract_spec

    if how["scheduler"] and how["local_cluster"]:
        raise click.UsageError("--scheduler and --local-cluster exclude each other")
    result = extract_spec(*job.parts, job.device, **how)
    return result.as_dict(), result.text(), 3 if result.extraction.unread else 0


@click.command("plan", epilog="Example: fashion-ntm plan mt_fashioniq-caption --probe --items 10000000")
@job_command
@option_device
@option_precision
@click.option("--probe", is_flag=True, help="Run a few batches to measure the rate and the time left.")
@click.option(
    "--batch-size", type=BatchSize(), default="auto", help="Items per forward pass of --probe; auto measures."
)
@click.option("--workers", type=click.IntRange(0), help="Decoding processes, of --probe and of the bound of memory.")
@click.option("--items", type=Count(), help="Also estimate machines, devices, hours and GB for a catalog of N images.")
@click.option(
    "--rate",
    type=click.FloatRange(0, min_open=True),
    metavar="R",
    help="Images per second of one device, for --items. Default: measured by --probe.",
)
@click.option("--shard-rows", type=click.IntRange(1), default=4096, help="Rows per commit, for --items.")
@click.option(
    "--devices-per-machine", "per_machine", type=click.IntRange(1), default=1, help="Such as 8 GPUs, for --items."
)
@prints
def plan(job: Job, items: int | None, rate: float | None, shard_rows: int, per_machine: int, **how: Any) -> Printed:
    """Show the work of `extract` with reasons; write nothing.

    Counts the rows to do, done, stale and failed by table, the GB to write and the most memory that it takes.
    """
    from pipeline.extraction.cost import cost_of
    from pipeline.jobs.stage1 import plan_spec

    result = plan_spec(*job.parts, job.device, **how)
    values, text = result.as_dict(), result.text()
    if items is not None:
        cost = cost_of(result, items, shard_rows, rate, per_machine)
        values, text = {**values, "cost": cost.as_dict()}, f"{text}\n\n{cost.text()}"
    return values, text


@click.command("index", epilog="Example: fashion-ntm index shop.toml --data DIR")
@job_command
@option_device
@click.option("--retry-failed", is_flag=True, help="Try the items again that are recorded as failed.")
@prints
def index(job: Job, retry_failed: bool) -> Printed:
    """Compute the features of SPEC's images for `search` and `serve`; needs no sessions.

    Resumable: run the same command again after the catalog has changed, and only new images are computed.
    """
    from pipeline.jobs.stage1 import index_spec

    return index_spec(*job.parts, job.device, retry_failed=retry_failed)


@click.command("fit-composer", epilog="Example: fashion-ntm fit-composer mt_fashioniq-caption")
@job_command
@prints
def fit_composer(job: Job) -> Printed:
    """Train the composer of SPEC on cached embeddings and write its query and target features.

    With --set composer.folds=K the features of each train session come from a head fitted without that session
    (cross-fitting).
    """
    from pipeline.jobs.stage1 import fit_composer_spec

    def tell(m: dict[str, float]) -> None:
        head = f"fold {m['fold']:.0f}, " if "fold" in m else ""
        log(f"{head}epoch {m['epoch']:.0f}: loss {m['loss']:.4f}")

    return fit_composer_spec(*job.parts, tell)


@click.command("fit-extractor", epilog="Example: fashion-ntm fit-extractor mt_fashioniq-fashionvlp --device cuda")
@job_command
@option_device
@click.option("--workers", type=click.IntRange(0), default=2, help="Decoding threads.")
@click.option(
    "--save-every", type=click.FloatRange(0), default=120, metavar="SECONDS", help="Time between checkpoints."
)
@prints
def fit_extractor(job: Job, workers: int, save_every: float) -> Printed:
    """Train the single-turn model of SPEC on the train triplets of its dataset.

    Resumable: run the same command again to continue from the last checkpoint. `extract` then uses the result.
    """
    from pipeline.extraction.fitting.job import fit_extractor_spec

    said = 0.0
    first: int | None = None

    def on_step(progress: Progress, total: int, rate: float) -> None:
        nonlocal said, first
        first = progress.step if first is None else first
        now = time.monotonic()
        if progress.step - first < 2 or now - said >= HEARTBEAT or progress.step == total or not progress.losses:
            loss = progress.losses[-1] if progress.losses else progress.curve[-1]
            log(f"step {progress.step:,} of {total:,}: loss {loss:.4f}, {rate:.1f} triplets/s")
            said = now

    return fit_extractor_spec(*job.parts, job.device, workers, log, on_step, save_every)


def _values(_: click.Context, __: click.Parameter, given: tuple[str, ...]) -> dict[str, float]:
    found = {}
    for word in given:
        metric, _equal, value = word.partition("=")
        try:
            found[metric] = float(value)
        except ValueError:
            metric = ""
        if metric not in METRIC_NAMES or not 0 <= found[metric] <= 100:
            raise click.BadParameter(f"{word!r} is not METRIC=PERCENT with one of {', '.join(METRIC_NAMES)}")
    return found


@click.command("check-extractor", epilog="Example: fashion-ntm check-extractor fashioniq-clip --data DIR")
@job_command
@click.option(
    "--published",
    multiple=True,
    metavar="METRIC=PERCENT",
    callback=_values,
    help="Published overall value of R@10, R@50 or mean; repeatable. Default: that of the model's card.",
)
@click.option(
    "--tolerance",
    type=click.FloatRange(0),
    default=1.0,
    metavar="POINTS",
    help="Warn about a larger difference from the published value.",
)
@click.option("--to", type=FOLDER, help="Output folder for the ranked lists, for `score` and `evaluate --ranked`.")
@option_device
@prints
def check_extractor(job: Job, published: dict[str, float], tolerance: float, to: Path | None) -> Printed:
    """Rank single-turn queries with SPEC's features; compare recall with published values.

    Recall is R@10 and R@50. FashionIQ is ranked in both gallery protocols (original and VAL). In any other dataset each
    turn of the test sessions is a query. Missing features are extracted first.
    """
    from pipeline.jobs.check_extractor import protocols, published_values, score
    from pipeline.jobs.experiment import Experiment
    from pipeline.jobs.run import make_features

    made = protocols(job.spec)
    datasets = {protocol: load(spec, job.data) for protocol, spec in made.items()}
    spec, dataset = next(iter(made.values())), next(iter(datasets.values()))
    make_features(spec, dataset, job.workspace, job.device, log)
    experiment = Experiment(spec, dataset, job.workspace, job.device, log)
    asked = ((data, name, published or published_values(spec, name)) for name, data in datasets.items())
    scores = [score(experiment, *one, tolerance, to) for one in asked]
    return [s.as_dict() for s in scores], "\n\n".join(s.text() for s in scores)
