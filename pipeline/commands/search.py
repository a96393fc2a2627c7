"""The `search` command."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.commands._shared import FILE, Job, emit, job_command, log, option_device, option_json, show

SECTION = "look"


@click.command("search", epilog='Example: fashion-ntm search shop.toml --image photo.jpg --text "in navy" --html')
@job_command
@click.option("--image", metavar="FILE|ID", help="Image to start from: a file, or an id of the catalog.")
@click.option("--text", "texts", multiple=True, help="What should be different; repeat it for further turns.")
@click.option("-k", "--top", type=click.IntRange(1, 1000), default=10, help="Number of results.")
@click.option("--gallery", metavar="NAME", help="Gallery, such as a category. Default: the first.")
@click.option("--run", metavar="ID", help="Run id, its first digits or its folder. Default: as `serve`.")
@click.option("--cached-only", is_flag=True, help="Load no extractor: only images and texts that are cached.")
@click.option("--html", is_flag=True, help="Write a page with thumbnails.")
@click.option("--file", type=FILE, help="File for --html. Default: search.html.", default=None)
@option_json
@option_device
def command(
    job: Job,
    image: str | None,
    texts: tuple[str, ...],
    top: int,
    gallery: str | None,
    run: str | None,
    cached_only: bool,
    html: bool,
    file: Path | None,
    as_json: bool,
) -> None:
    """Search SPEC's gallery by an image, by texts, or by an image and a requested change.

    Several --text are the turns of a dialogue: each refers to the best result of the one before.
    """
    if image is None and not texts:
        raise click.UsageError("give --image, --text or both")
    if file is not None and not html:
        raise click.UsageError("--file names the page of --html: add --html")
    from cache.files import replace_atomically
    from pipeline.api.engine import Engine
    from pipeline.api.search import search
    from pipeline.views.serve.run import open_engine

    engine = Engine(open_engine(*job.parts, [run] if run else [], job.device, cached_only, log=log))
    found, start = search(engine, job.spec.title or job.spec.name, image, texts, top, gallery)
    others = [name for name in engine.galleries if name != found.gallery]
    log(
        f"gallery {found.gallery}"
        + (f" (--gallery: {', '.join(others[:5])})" if others else "")
        + (f", answered by {found.model}" if found.model else "")
        + (f" (--run: one of {len(engine.models):,})" if found.model and len(engine.models) > 1 else "")
    )
    if html:
        path = file or Path("search.html")
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_atomically(path, found.html(start).encode())
        log(f"written to {path}")
    if as_json or not html:
        emit(found.as_dict(), found.text(), as_json)
    else:
        show(found.text())
