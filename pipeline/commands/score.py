"""The `score` command."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.commands._shared import EXISTING_FILE, emit, option_json

SECTION = "results"


@click.command("score", epilog="Example: fashion-ntm score circo.json --annotations circo/val.json")
@click.argument("ranked", metavar="RANKED", type=EXISTING_FILE)
@click.option("--annotations", required=True, type=EXISTING_FILE, help="cap.rc2.val.json of CIRR or val.json of CIRCO.")
@option_json
def command(ranked: Path, annotations: Path, as_json: bool) -> None:
    """Score ranked lists on CIRR or CIRCO with the benchmark's annotation file.

    Prints R@K and R_subset@K for CIRR, mAP@K for CIRCO. RANKED: a server file, TREC run or JSON lines, whose session
    ids are the benchmark's query ids.
    """
    from pipeline.evaluation.cir_benchmarks import score_benchmark

    found = score_benchmark(ranked, annotations)
    emit(found.as_dict(), found.text(), as_json)
