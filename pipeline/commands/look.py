"""Commands to look around: ls, search, serve, study, demo."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from manifests.commandline import command_line
from pipeline.commands._options import FILE, FOLDER, folder_option, option_device, option_folders, option_host
from pipeline.commands._shared import Job, Printed, job_command, log, prints, sessions_command

SECTION = "look"
PARTS = ["datasets", "extractors", "composers", "models"]
KINDS = ["specs", "ablations", "tables", "figures", *PARTS, "presets", "stores", "runs"]


@click.command("ls", epilog="Example: fashion-ntm ls models --long")
@click.argument("kind", type=click.Choice(KINDS), required=False)
@click.option("--long", "-l", "detail", is_flag=True, help="Also list options, licenses and sizes.")
@click.option(
    "--where", multiple=True, metavar="KEY=VALUE", help="Only runs with this value, e.g. model=cm_ntm. Repeatable."
)
@click.option("--sort", metavar="KEY", help="Sort runs by test, validation, date, seed, ...; -KEY: descending.")
@option_folders
@prints
def ls(kind: str | None, where: tuple[str, ...], sort: str | None, **options: Any) -> Printed:
    """List specs, datasets, parts, tables and figures, and the stores and runs in OUT.

    A run is current when its training data equals the data that its spec now names in DATA. Keys of runs are those
    of --json, nested ones dotted: `ls runs --where options.stages=2 --sort -test`.
    """
    from pipeline.jobs.listing import listing, listing_text

    if kind != "runs" and (where or sort):
        raise click.UsageError("--where and --sort belong to `ls runs`")
    found = listing([kind] if kind else KINDS, where=where, sort=sort or "", **options)
    return found, listing_text(found)


@click.command("search", epilog='Example: fashion-ntm search shop.toml --image photo.jpg --text "in navy" --html')
@job_command
@click.option("--image", metavar="FILE|ID", help="Image to start from: a file, or an id of the catalog.")
@click.option("--text", "texts", multiple=True, help="What should be different; repeat it for further turns.")
@click.option("-k", "--top", "k", type=click.IntRange(1, 1000), default=10, help="Number of results.")
@click.option("--gallery", metavar="NAME", help="Gallery, such as a category. Default: the first.")
@click.option("--run", metavar="ID", help="Run id, its first digits or its folder. Default: as `serve`.")
@click.option("--cached-only", is_flag=True, help="Load no extractor: only images and texts that are cached.")
@click.option("--html", is_flag=True, help="Write a page with thumbnails.")
@click.option("--file", type=FILE, help="File for --html. Default: search.html.")
@option_device
@prints
def search(
    job: Job, run: str | None, cached_only: bool, html: bool, file: Path | None, image: str | None, **asked: Any
) -> Printed:
    """Search SPEC's gallery by an image, by texts, or by an image and a requested change.

    Several --text are the turns of a dialogue: each refers to the best result of the one before.
    """
    from cache.files import replace_atomically
    from pipeline.api.engine import Engine
    from pipeline.api.search import search
    from pipeline.views.serve.run import open_engine

    if image is None and not asked["texts"]:
        raise click.UsageError("give --image, --text or both")
    if file is not None and not html:
        raise click.UsageError("--file names the page of --html: add --html")
    engine = Engine(open_engine(job.experiment, [run] if run else [], cached_only))
    found, start = search(engine, job.spec.title or job.spec.name, image, **asked)
    others = [name for name in engine.galleries if name != found.gallery]
    note = f" (--gallery: {', '.join(others[:5])})" if others else ""
    note += f", answered by {found.model}" if found.model else ""
    note += f" (--run: one of {len(engine.models):,})" if found.model and len(engine.models) > 1 else ""
    log(f"gallery {found.gallery}{note}")
    if html:
        path = file or Path("search.html")
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_atomically(path, found.html(start).encode())
        log(f"written to {path}")
    return found


@click.command("serve", epilog="Example: fashion-ntm serve demo --data out/demo --out out/demo")
@job_command
@click.option(
    "--run", "runs", multiple=True, metavar="ID", help="Run id or first digits; repeatable. Default: all finished runs."
)
@option_host
@click.option("--port", type=click.IntRange(0, 65535), default=8000, help="0: a free one.")
@click.option("--cached-only", is_flag=True, help="Load no extractor: only cached texts can be used.")
@click.option("--save", type=FOLDER, help="Folder that keeps saved dialogues, as a dataset that `evaluate` reads.")
@click.option("--max-upload-mb", type=click.FloatRange(0.1, 100), default=8.0, metavar="MB", help="Largest upload.")
@option_device
def serve(
    job: Job, runs: tuple[str, ...], host: str, port: int, cached_only: bool, save: Path | None, max_upload_mb: float
) -> None:
    """Serve a local page for multi-turn search over SPEC's gallery, to compare models."""
    from pipeline.views.serve.run import listen, need_web, open_engine, saved_folder

    need_web()
    from pipeline.views.serve.app import make_app
    from pipeline.views.serve.limits import Limits

    limits = Limits(upload_bytes=int(max_upload_mb * 1e6))
    engine = open_engine(job.experiment, runs, cached_only, limits)
    saved = saved_folder(save, engine, log) if save else None
    title = job.spec.title or job.spec.name
    listen(lambda token, hosts: make_app(engine, title, token, hosts, saved), host, port, log, click.echo)


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
    "--sessions", type=click.IntRange(1), default=45, help="Questions: random test sessions where the models differ."
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


@click.command("demo", epilog="Example: fashion-ntm demo --out out/demo")
@folder_option("out", "Folder for images, store and runs.", "demo")
@click.option(
    "--rebuild-model",
    is_flag=True,
    help="Train the demo's single-turn model and composer from nothing into OUT/model, and compare its score with the "
    "shipped one (minutes).",
)
@option_device
def demo(out: Path, rebuild_model: bool, device: str) -> None:
    """Run both stages on the embedded demo and print a table. Needs no network and no GPU; under two minutes."""
    from pipeline.demo import run

    click.echo(run.rebuild(out, log) if rebuild_model else run.demo(out, device, log))
