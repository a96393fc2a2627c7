"""The `serve` command."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.commands._shared import FOLDER, Job, job_command, log, option_device, option_host

SECTION = "look"


@click.command("serve", epilog="Example: fashion-ntm serve demo --data out/demo --out out/demo")
@job_command
@click.option(
    "--run",
    "runs",
    multiple=True,
    metavar="ID",
    help="Run id, or its first digits; repeatable. Default: all finished runs of the spec.",
)
@option_host
@click.option("--port", type=click.IntRange(0, 65535), default=8000, help="0: a free one.")
@click.option("--cached-only", is_flag=True, help="Load no extractor: only cached texts can be used.")
@click.option("--save", type=FOLDER, help="Folder that keeps saved dialogues, as a dataset that `evaluate` reads.")
@click.option("--max-upload-mb", type=click.FloatRange(0.1, 100), default=8.0, metavar="MB", help="Largest upload.")
@option_device
def command(
    job: Job, runs: tuple[str, ...], host: str, port: int, cached_only: bool, save: Path | None, max_upload_mb: float
) -> None:
    """Serve a local page for multi-turn search over SPEC's gallery, to compare models."""
    from pipeline.views.serve.run import listen, need_web, open_engine, saved_folder

    need_web()
    from pipeline.views.serve.app import make_app
    from pipeline.views.serve.limits import Limits

    limits = Limits(upload_bytes=int(max_upload_mb * 1e6))
    engine = open_engine(*job.parts, runs, job.device, cached_only, limits, log)
    saved = saved_folder(save, engine, log)
    title = job.spec.title or job.spec.name
    listen(lambda token, hosts: make_app(engine, title, token, hosts, saved), host, port, log, click.echo)
