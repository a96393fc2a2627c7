"""The `report` command."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.commands._shared import FILE, Job, emit, log, option_device, option_json, parse_numbers, sessions_command

SECTION = "results"


@click.command("report", epilog="Example: fashion-ntm report demo --data out/demo --out out/demo --file report.html")
@sessions_command
@click.option("--file", type=FILE, default=Path("report.html"), help="The file to write.")
@click.option("--model", help="Memory model that is shown session by session. Default: the spec's last one.")
@click.option("--against", metavar="MODEL", help="Model that it is compared with. Default: the strongest other one.")
@click.option("--seeds", callback=parse_numbers, help="0..4 or 0,2,5. Default: the spec's seeds.")
@click.option("--sessions", type=click.IntRange(0), default=150, help="Sessions shown one by one.")
@click.option("--top", "k", type=click.IntRange(1, 50), default=5, help="Results per turn.")
@click.option(
    "--max-mb",
    "megabytes",
    type=click.FloatRange(0.2),
    default=20.0,
    metavar="MB",
    help="Largest size of the file; pictures are left out first.",
)
@option_device
@option_json
def command(
    job: Job,
    file: Path,
    model: str | None,
    against: str | None,
    seeds: tuple[int, ...] | None,
    sessions: int,
    k: int,
    megabytes: float,
    as_json: bool,
) -> None:
    """Write SPEC's results to one self-contained HTML file.

    It has tables, training curves, retention, turn order and single sessions.
    """
    from pipeline.views.report.build import Options, gather
    from pipeline.views.report.page import write_report

    asked = Options(model, against, seeds, sessions, k, megabytes)
    done = write_report(file, gather(*job.parts, job.data, asked, job.device, log))
    log(f"{done['bytes'] / 1e6:.1f} MB, {done['sessions']} sessions, {done['pictures']} pictures")
    emit(done, str(done["path"]), as_json)
