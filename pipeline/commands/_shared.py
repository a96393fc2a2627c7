"""Shared parts of the commands: options, loading of specs and datasets, and output."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from manifests.commandline import BUILT_IN, default_folder, folder_options, variable
from manifests.text import printable

if TYPE_CHECKING:
    from manifests.schema import Dataset, RunSpec
    from pipeline.core.workspace import Workspace

F = TypeVar("F", bound=Callable[..., Any])


def option_out(f: F) -> F:
    return folder_option("out", "Folder for stores and runs.")(f)


def option_data(f: F) -> F:
    return folder_option("data", "Folder of the datasets (mt_fashioniq/, shoes/, blip2_captions/, ...).")(f)


def folder_option(name: str, about: str, inside: str = "") -> Callable[[F], F]:
    """Return option ``--name``, a folder with a default of ``manifests.commandline``, and ``inside`` it if given."""

    def settle(ctx: click.Context, param: click.Parameter, value: Path | None) -> Path:
        if value is not None:
            return value
        folder, source = default_folder(name)
        if source:
            log(f"note: --{name} {folder / inside}, from {source}")
        return folder / inside

    return click.option(
        f"--{name}",
        type=click.Path(path_type=Path),
        callback=settle,
        help=f"{about}  [{variable(name)}; default: {BUILT_IN[name] / inside}]",
    )


def option_json(f: F) -> F:
    return click.option("--json", "as_json", is_flag=True, help="Print JSON to stdout.")(f)


def option_set(f: F) -> F:
    return click.option(
        "--set",
        "overrides",
        multiple=True,
        metavar="KEY=VALUE",
        help="Override a key of the spec, e.g. extractor.model=DIR or training.epochs=20. Repeatable.",
    )(f)


def option_device(f: F) -> F:
    return click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1 or mps.")(f)


BACKENDS = ["auto", "reference", "fast", "numba", "graph", "triton"]


def option_backend(f: F) -> F:
    return click.option(
        "--backend",
        type=click.Choice(BACKENDS),
        default="auto",
        show_default=True,
        help="How the CM-NTM's steps are computed; auto takes the first that can of triton, graph, numba, fast, reference.",
    )(f)


def spec_command(f: F) -> F:
    """Add SPEC, --set, --data and --out, the parameters of every command on a spec."""
    argument = click.argument("spec", metavar="SPEC")
    return argument(option_set(option_data(option_out(f))))


def stage2_command(f: F) -> F:
    """Add SPEC and its options, --model, --seeds and --device; call ``f`` with experiment, models and seeds."""

    @wraps(f)
    def call(spec: str, overrides: tuple[str, ...], data: Path, out: Path, device: str, **words: Any) -> Any:
        from pipeline.jobs.experiment import Experiment
        from pipeline.jobs.identities import asked_runs

        job, workspace = open_job(spec, overrides, data, out)
        asked_runs(job, words["models"])  # an unknown model is named before anything is read
        return f(Experiment(job, load(job, data), workspace, device, log), **words)

    return spec_command(option_models(option_device(call)))


def open_job(spec: str, overrides: tuple[str, ...], data: Path, out: Path) -> tuple[RunSpec, Workspace]:
    """Return the checked spec and its workspace; printed commands repeat the options of this call."""
    from pipeline.analysis.tuning.sealed import read_spec
    from pipeline.core.workspace import Workspace
    from pipeline.jobs.specs import check_components

    loaded = read_spec(spec, overrides, shlex.join([spec, *options(overrides, data, out)]))
    check_components(loaded)
    return loaded, Workspace(out)


def options(overrides: tuple[str, ...], data: Path, out: Path) -> list[str]:
    """Return the options of this call that differ from the built-in defaults, for a command that can be pasted."""
    words = [word for override in overrides for word in ("--set", override)]
    return words + folder_options(data, out)


def load(spec: RunSpec, data: Path) -> Dataset:
    from manifests.load import load_dataset

    dataset = load_dataset(spec, data)
    for note in dataset.notes:
        log(f"note: {note}")
    return dataset


def log(text: str) -> None:
    click.echo(printable(text), err=True)


def show(text: str, nl: bool = True) -> None:
    """Print text to stdout, with terminal control characters (in a name, a note or a caption) escaped."""
    click.echo(printable(text), nl=nl)


@contextmanager
def progress_line() -> Iterator[Callable[[str], None]]:
    """Yield a function that shows progress on stderr: one line that is overwritten on a terminal, a line each elsewhere."""
    live, shown = sys.stderr.isatty(), False

    def say(text: str) -> None:
        nonlocal shown
        shown = True
        click.echo(f"\r\x1b[K{printable(text)}" if live else printable(text), err=True, nl=not live)

    try:
        yield say
    finally:
        if live and shown:
            click.echo(err=True)


def emit(value: Any, text: str, as_json: bool) -> None:
    """Print ``text``, or ``value`` as JSON, to stdout."""
    show(json.dumps(value, indent=2, default=str) if as_json else text)


_MOST_NUMBERS = 100_000  # of one span


def parse_numbers(_: click.Context, __: click.Parameter, value: str | None) -> tuple[int, ...] | None:
    """Parse ``0..4``, ``0,2,5`` or ``0,2..4``; return None when not given."""
    if value is None:
        return None
    numbers: list[int] = []
    try:
        for part in value.split(","):
            first, dots, last = part.partition("..")
            span = range(int(first), int(last) + 1) if dots else (int(first),)
            if not 0 < len(span) <= _MOST_NUMBERS:
                raise ValueError
            numbers += span
    except (ValueError, OverflowError):  # OverflowError: the length of a huge span
        numbers = []
    if not numbers or min(numbers) < 0:
        raise click.BadParameter(f"{value!r} is not a list of numbers: write 0..4, 0,2,5 or 0,2..4")
    return tuple(dict.fromkeys(numbers))


def option_models(f: F) -> F:
    f = click.option("--model", "models", multiple=True, help="Memory model; repeatable. Default: all of the spec.")(f)
    return click.option(
        "--seeds",
        callback=parse_numbers,
        help="0..4 or 0,2,5. Default: the spec's seeds; `evaluate` and `results` take all that are trained.",
    )(f)
