"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import click

from manifests.commandline import BUILT_IN, default_folder, variable
from manifests.text import printable

F: TypeAlias = Callable[..., Any]  # of a command
PATH = click.Path(path_type=Path)
FILE, EXISTING_FILE = (click.Path(path_type=Path, dir_okay=False, exists=exists) for exists in (False, True))
FOLDER, EXISTING_FOLDER = (click.Path(path_type=Path, file_okay=False, exists=exists) for exists in (False, True))
_MOST_NUMBERS = 100_000  # of one span


def folder_option(name: str, about: str, inside: str = "") -> Callable[[F], F]:
    """Return option ``--name``, a folder with a default of ``manifests.commandline``, and ``inside`` it if given."""

    def settle(ctx: click.Context, param: click.Parameter, value: Path | None) -> Path:
        if value is not None:
            return value
        folder, source = default_folder(name)
        if source:
            click.echo(printable(f"note: --{name} {folder / inside}, from {source}"), err=True)
        return folder / inside

    about += f"  [{variable(name)}; default: {BUILT_IN[name] / inside}]"
    return click.option(f"--{name}", type=PATH, metavar="DIR", callback=settle, help=about)


option_out = folder_option("out", "Folder for stores and runs.")
option_data = folder_option("data", "Folder of the datasets (mt_fashioniq/, shoes/, blip2_captions/, ...).")


def option_folders(f: F) -> F:
    return option_data(option_out(f))


def option_inputs(f: F) -> F:
    """Add --set, --data and --out."""
    return option_set(option_folders(f))


def choice(*names: str, of: Sequence[str], help: str | None = None) -> Callable[[F], F]:
    """Return an option whose value is one of ``of``; default: the first."""
    return click.option(*names, type=click.Choice(of), default=of[0], help=help)


option_json = click.option("--json", "as_json", is_flag=True, help="Print JSON to stdout.")
option_set = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override a key of the spec, e.g. extractor.model=DIR or training.epochs=20. Repeatable.",
)
option_device = click.option("--device", default="auto", help="auto, cpu, cuda, cuda:1 or mps.")
_HOST = "Address to listen on. Any other than this machine's own gets a token."
option_host = click.option("--host", default="127.0.0.1", metavar="ADDRESS", help=_HOST)


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
