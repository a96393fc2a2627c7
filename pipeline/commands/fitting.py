"""Commands that fit and check single-turn models and composers."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.commands._shared import FOLDER, Job, Printed, job_command, load, log, option_device, prints

if TYPE_CHECKING:
    from pipeline.extraction.fitting.loop import Progress

SECTION = "stage 1"
HEARTBEAT = 15.0  # seconds between lines; the first steps are reported immediately
METRIC_NAMES = ("R@10", "R@50", "mean")


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
    scores = [
        score(experiment, data, protocol, published or published_values(spec, protocol), tolerance, to)
        for protocol, data in datasets.items()
    ]
    return [s.as_dict() for s in scores], "\n\n".join(s.text() for s in scores)
