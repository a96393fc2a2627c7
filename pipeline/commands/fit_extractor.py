"""The `fit-extractor` command."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from pipeline.commands._shared import Job, emit, job_command, log, option_device, option_json

if TYPE_CHECKING:
    from pipeline.extraction.fitting.state import Progress

SECTION = "stage 1"
HEARTBEAT = 15.0  # seconds between lines; the first steps are reported immediately


@click.command("fit-extractor", epilog="Example: fashion-ntm fit-extractor mt_fashioniq-fashionvlp --device cuda")
@job_command
@option_device
@click.option("--workers", type=click.IntRange(0), default=2, help="Decoding threads.")
@click.option(
    "--save-every", type=click.FloatRange(0), default=120, metavar="SECONDS", help="Time between checkpoints."
)
@option_json
def command(job: Job, workers: int, save_every: float, as_json: bool) -> None:
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

    result = fit_extractor_spec(*job.parts, job.device, workers, log, on_step, save_every)
    emit(result.as_dict(), result.text(), as_json)
