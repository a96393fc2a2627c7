#!/usr/bin/env python3
"""Command line: load the commands of ``pipeline/commands`` and map errors to messages and exit codes."""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import click

from manifests.errors import advice, disk_problem
from manifests.text import printable
from pipeline.commands import sections_of
from pipeline.commands._moved import refuse_old_spelling
from pipeline.commands._shared import INTERRUPTED

KEPT = "what was finished is kept"
SECTIONS = sections_of("pipeline.commands")


class Commands(click.Group):
    """Command group that maps the project's errors to one message and an exit code (see the epilog of --help)."""

    def main(self, *args: Any, **extra: Any) -> Any:
        for stream in (sys.stdout, sys.stderr):  # a character outside the console's code page must not raise
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="backslashreplace")
        warnings.formatwarning = _one_line
        with terminable():
            return super().main(*args, **extra)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        for word in args:
            if not _utf8(word):
                # HDF5 and run files store paths as UTF-8 text.
                raise click.UsageError(f"{word!a} is not UTF-8: rename the file or folder that it names")
        refuse_old_spelling(args)
        return super().parse_args(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands under the headings of their sections."""
        width = max(map(len, self.commands))
        for section, commands in SECTIONS.items():
            with formatter.section(section.capitalize()):
                formatter.write_dl([(f"{c.name:{width}}", c.get_short_help_str(formatter.width * 2)) for c in commands])

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            click.echo(f"interrupted: {KEPT}; run the same command to resume", err=True)
            ctx.exit(INTERRUPTED)
        except Exception as error:
            code = getattr(error, "exit_code", None)
            if isinstance(error, click.ClickException | click.exceptions.Exit):
                raise
            if code is None and isinstance(error, OSError) and error.errno != errno.EPIPE:
                click.echo(printable(f"error: {disk_problem(error)}; {KEPT}; {advice(error)}"), err=True)
                ctx.exit(1)
            if code is None:
                raise
            click.echo(printable(str(error) if code == INTERRUPTED else f"error: {error}"), err=True)
            ctx.exit(code)


@contextmanager
def terminable() -> Iterator[None]:
    """Treat SIGTERM as Ctrl-C inside the context, in this process and its main thread alone."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    process = os.getpid()

    def stop(number: int, frame: FrameType | None) -> None:
        if os.getpid() != process:  # a forked child ends as if there were no handler
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGTERM)
        elif callable(signal.getsignal(signal.SIGINT)):
            signal.raise_signal(signal.SIGINT)
        else:  # SIGINT is ignored, as in a script's background job
            raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _utf8(word: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in word)


def _one_line(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """Format the project's own warnings as a note, and others with file and line."""
    own = category.__module__.split(".")[0] in ("manifests", "cache", "pipeline")
    return f"note: {printable(str(message))}\n" if own else f"{filename}:{lineno}: {category.__name__}: {message}\n"


@click.group(
    cls=Commands,
    commands=[command for commands in SECTIONS.values() for command in commands],
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110, "show_default": True},
    epilog="SPEC is the name of a shipped spec (see `ls specs`) or a path to a .toml file. "
    "Exit codes: 0 ok, 1 failure, 2 usage, 3 stale or incomplete, 4 invalid manifest, 130 interrupted.",
)
@click.version_option(package_name="fashion-ntm", message="%(version)s")
def main() -> None:
    """FashionNTM: multi-turn fashion image retrieval on cached features.

    Stage 1 (extract, fit-composer) runs a frozen single-turn model once and caches its features. Stage 2 (train,
    evaluate, table) fits memory models on the cached features alone. Start with `demo`.
    """


if __name__ == "__main__":
    main()
