"""The `check-extractor` command."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.commands._shared import FOLDER, Job, emit, job_command, load, log, option_device, option_json

SECTION = "stage 1"
METRIC_NAMES = ("R@10", "R@50", "mean")


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
@option_json
def command(job: Job, published: dict[str, float], tolerance: float, to: Path | None, as_json: bool) -> None:
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
    emit([s.as_dict() for s in scores], "\n\n".join(s.text() for s in scores), as_json)
