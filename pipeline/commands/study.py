"""The `study` command: `study SPEC` serves a preference study, `study results FILE` prints the answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from manifests.commandline import command_line
from pipeline.commands._options import FILE, option_device, option_host
from pipeline.commands._shared import Job, Printed, log, prints, sessions_command

SECTION = "look"


class StudyGroup(click.Group):
    """Command group that reads a first word that names no subcommand as a SPEC."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if args and args[0] not in self.commands:
            args = ["ask", *args]
        return super().resolve_command(ctx, args)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0].startswith("-") and args[0] not in ctx.help_option_names:
            args = ["ask", *args]  # options before SPEC belong to it
        return super().parse_args(ctx, args)


@click.group("study", cls=StudyGroup, epilog="Example: fashion-ntm study demo --data out/demo --out out/demo")
def study() -> None:
    """Run a blind preference study: participants choose between the results of models.

    `study SPEC` creates the study (or resumes it) and serves its page; `study ask --help` lists its options.
    """


@study.command("ask", epilog="Example: fashion-ntm study demo --model cm_ntm --model ewma --sessions 45")
@sessions_command
@click.option(
    "--model",
    "models",
    multiple=True,
    help="Memory model to compare, 2 to 4 of them; repeatable. Default: the paper's three, cm_ntm, lstm and ewma, "
    "where they are trained.",
)
@click.option(
    "--sessions",
    type=click.IntRange(1),
    default=45,
    help="Questions: test sessions drawn at random among those where the models differ.",
)
@click.option("--top", "k", type=click.IntRange(1, 10), default=1, help="Results shown of each model.")
@click.option("--seed", type=int, default=0, help="Seed of the draw and of every order.")
@click.option(
    "--code", "codes", multiple=True, metavar="NAME", help="Admit only participants of these names; repeatable."
)
@click.option("--file", "db", type=FILE, help="SQLite file for the answers. Default: OUT/studies/SPEC.sqlite.")
@option_host
@click.option("--port", type=click.IntRange(0, 65535), default=8001, help="0: a free one.")
@option_device
def ask(job: Job, db: Path | None, host: str, port: int, **asked: Any) -> None:
    """Serve the study of SPEC. Every answer is saved immediately; participants can resume under the same name."""
    from pipeline.views.serve.run import listen, need_web

    need_web()
    from pipeline.views.study.app import make_study_app
    from pipeline.views.study.run import default_path, open_study

    path = db or default_path(job.workspace, job.spec)
    study = open_study(path, job.experiment, **asked)
    log(f"answers go to {path}; see them with `{command_line('study', 'results', str(path))}`")
    title = job.spec.title or job.spec.name
    listen(lambda token, hosts: make_study_app(study, job.dataset, title, token, hosts), host, port, log, click.echo)


@study.command("results", epilog="Example: fashion-ntm study results out/demo/studies/demo.sqlite --chart figure7.png")
@click.argument("file", type=FILE)
@click.option("--chart", type=FILE, help="Also draw Figure 7 (.png, .pdf or .svg).")
@prints
def results(file: Path, chart: Path | None) -> Printed:
    """Print preference rates, their intervals and sign tests, of the answers in FILE."""
    from pipeline.views.study.results import study_results
    from pipeline.views.study.store import StudyFile

    found = study_results(StudyFile(file))
    if chart is not None:
        from pipeline.views.study.results import write_chart

        write_chart(chart, found)
    return found
